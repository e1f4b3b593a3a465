"""What every window keeps; a new file in `samplers/windows/` is tested without being named here."""

from dataclasses import replace

import pytest
import torch

from alignment.config import registry
from samplers.windows.base import Window

NAMES = tuple(registry.known(Window))
ROUNDS = (6, 7, 12)
SWEEP = 600
"""Training steps in which a sliding window with its defaults (25 steps a position) passes over 12 rounds twice."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=NAMES)
def window(request):
    return registry.find(Window, request.param)()


def test_it_is_a_frozen_window_with_defaults(window):
    assert isinstance(window, Window)
    assert type(window).__dataclass_params__.frozen
    assert window == type(window)()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_choice_is_ascending_and_trains_what_is_stochastic(window, rounds):
    for step in range(0, SWEEP, 7):
        choice = window.choose(rounds, step, step % 3, generator(step))
        for steps in (choice.stochastic, choice.trained):
            assert list(steps) == sorted(set(steps))
            assert set(steps) <= set(range(rounds))
        assert choice.trained
        assert set(choice.trained) <= set(choice.stochastic)
        assert not choice.branch or len(choice.stochastic) == 1


@pytest.mark.parametrize("rounds", ROUNDS)
def test_the_last_step_is_left_out_by_default_and_all_others_come_up(window, rounds):
    seen = set()
    for step in range(SWEEP):
        seen |= set(window.choose(rounds, step, 0, generator(step)).trained)
    eligible = set(window.steps) if type(window).__name__ == "Branch" else set(range(rounds - 1))
    assert seen == eligible


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_choice_knows_what_may_come_up(window, rounds):
    choices = [window.choose(rounds, step, step % 3, generator(step)) for step in range(SWEEP)]
    for choice in choices:
        assert set(choice.eligible or choice.trained) == {k for other in choices for k in other.trained}


def test_the_last_step_comes_up_where_it_is_asked_for(window):
    if "drop_last" not in vars(window):
        return
    whole = replace(window, drop_last=False)
    assert any(5 in whole.choose(6, step, 0, generator(step)).trained for step in range(SWEEP))


def test_a_choice_is_a_function_of_step_chunk_and_generator(window):
    for step in range(0, 60, 13):
        assert window.choose(7, step, 2, generator(step)) == window.choose(7, step, 2, generator(step))


def test_no_step_to_train_is_refused(window):
    with pytest.raises(ValueError, match=r"step|round"):
        window.choose(1, 0, 0, generator())
