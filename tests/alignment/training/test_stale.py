"""Samples of the policy before: they are begun while scores are out, learned from by exact ratios, and made again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.config import build, yaml_nodes
from alignment.config.refusals import rollouts
from alignment.context import Context
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.structures.perceptual import Perceptual
from alignment.data.batches import Batch, Experience, Groups, Transitions
from alignment.errors import ConfigError
from alignment.objectives.base import Learn
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.base import PREVIOUS, Source
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.on_policy_tree import OnPolicyTree
from alignment.training.loop import Trainer
from reward_models.base import RewardError
from reward_models.combinators.function import Function
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.fraction import Fraction
from tests.support.toy import REWARD, STEPS, fit, near_the_right_mode, saved, toy_run, trainer_of

EXACT = 1e-6
"""Ratios of a policy to itself are off 1 by float32 rounding."""
GUARD = 60.0
"""Seconds until a judge that nobody samples for is taken for lost; a test that passes never waits for it."""
STALE = OnPolicySteps(4, REWARD, FlowSDE(), Fraction(), group_size=4, overlap="always", stale=1)
SOURCES = {"steps": STALE, "tree": OnPolicyTree(4, FlowSDE(), REWARD, splits=(0, 1), overlap="always", stale=1)}

calls = threading.Condition()
counted = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    trainer = trainer_of(toy_run(folder, STALE, ClippedSurrogate(clip=1e-2), 4))
    yield trainer
    trainer.runtime.close()


def state_of(trainer: Trainer) -> dict[str, Mapping[str, Tensor]]:
    """Return what a checkpoint keeps, in memory of its own."""
    kept = {"live": trainer.policy.trainable, "moments": trainer.runtime.moments(), **trainer.policy.snapshots}
    return {name: {key: z.detach().clone() for key, z in part.items()} for name, part in kept.items()}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(z, other[key]) for key, z in one.items())


def when_sampling_goes_on(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward: that of the toy, as soon as the network was called for more than the step that is judged first."""
    with calls:
        assert calls.wait_for(lambda: counted > STEPS, GUARD), "nobody samples while this judge thinks"
    return near_the_right_mode(pixels, prompts)


def test_the_next_step_is_sampled_while_the_scores_of_this_one_are_out(folder: Path) -> None:
    global counted
    source = replace(STALE, reward=Function(f"{__name__}:when_sampling_goes_on"))
    trainer = trainer_of(toy_run(folder, source, ClippedSurrogate(clip=1e-2), 2))

    def count(*_: object) -> None:
        global counted
        with calls:
            counted += 1
            calls.notify_all()

    counted = 0
    trainer.policy.pipe.transformer.register_forward_pre_hook(count)
    assert [line["reward/unscored_fraction"] for line in fit(trainer)] == [0, 0]
    trainer.runtime.close()


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_learned_from_was_sampled_by_the_policy_of_the_step_before(folder: Path, kind: str) -> None:
    run = toy_run(folder, SOURCES[kind], ClippedSurrogate(clip=1e-2), 3)
    weights: list[Mapping[str, Tensor]] = []
    batches: list[Batch] = []
    trained, other = trainer_of(run), trainer_of(run)

    def after(step: int, experience: Experience[Batch], metrics: dict[str, float]) -> None:
        weights.append(state_of(trained)["live"])
        batches.append(experience.batch)

    weights.append(state_of(trained)["live"])
    trained.fit(0, after)
    for step, batch in enumerate(batches):
        for name, p in other.policy.trainable.items():
            p.data.copy_(weights[max(step - 1, 0)][name])
        again = other.experience(other.context(step)).batch
        assert isinstance(batch, Transitions)
        assert isinstance(again, Transitions)
        assert torch.equal(batch.model_output, again.model_output)
        assert torch.equal(batch.advantage, again.advantage)
    trained.runtime.close()
    other.runtime.close()


def test_the_record_says_how_far_apart_the_two_policies_were(trainer: Trainer) -> None:
    lines = fit(trainer)
    assert lines[0]["ratio/first_error_max"] <= EXACT
    for line in lines[1:]:
        assert EXACT < line["ratio/first_error_mean"] <= line["ratio/first_error_max"] < 0.5


@pytest.mark.parametrize("done", [1, 3])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_been(trainer: Trainer, folder: Path, done: int) -> None:
    kept: dict[int, dict[str, Mapping[str, Tensor]]] = {}
    trainer.fit(0, lambda step, *_: kept.update({step + 1: state_of(trainer)}))
    resumed = trainer_of(trainer.run)
    fit(resumed, 1)  # so that there are moments, and nothing is by chance what it was
    here = {"live": resumed.policy.trainable, "moments": resumed.runtime.moments(), **resumed.policy.snapshots}
    with torch.no_grad():
        for name, part in kept[done].items():
            for key, z in part.items():
                here[name][key].copy_(z)
    resumed.fit(done, lambda *_: None)
    found = state_of(resumed)
    assert found.keys() == kept[4].keys()
    for name, part in found.items():
        assert_equal(part, kept[4][name])
    resumed.runtime.close()


@dataclass(frozen=True)
class BreaksDown(ClippedSurrogate):
    """Fails in the backward pass of the second step."""

    def __call__(self, ctx: Context, batch: Transitions, learn: Learn) -> None:
        if ctx.step == 1:
            raise MemoryError
        super().__call__(ctx, batch, learn)


def test_a_step_that_fails_before_its_update_leaves_a_state_to_make_its_samples_from(folder: Path) -> None:
    trainer = trainer_of(toy_run(folder, STALE, BreaksDown(clip=1e-2), 3))
    start, kept = state_of(trainer), []
    with pytest.raises(Exception, match="memory"):
        trainer.fit(0, lambda *_: kept.append(state_of(trainer)))
    left = state_of(trainer)
    assert_equal(left[PREVIOUS], start["live"])
    assert_equal(left["live"], kept[0]["live"])
    trainer.runtime.close()


def fails(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    raise LookupError("no judge")


def test_a_judge_that_fails_ends_the_run(folder: Path) -> None:
    trainer = trainer_of(toy_run(folder, replace(STALE, reward=Function(f"{__name__}:fails")), ClippedSurrogate(), 3))
    with pytest.raises(RewardError, match="fails raised LookupError"):
        fit(trainer)
    trainer.runtime.close()


def test_who_settles_has_every_answer(trainer: Trainer) -> None:
    world, answered = trainer.runtime.world, []
    world.settle()
    for number in range(3):
        world.helper.submit(answered.append, number)
    world.settle()
    assert answered == [0, 1, 2]


# ---- refusals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain(ClippedSurrogate):
    """One that says nothing of ratios."""

    takes_ratios = False


@dataclass(frozen=True)
class Later(OnPolicySteps):
    """One that does more in its call."""

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Transitions]:
        return super().__call__(ctx, groups)


@dataclass(frozen=True)
class Behind(OnPolicySteps):
    """One that samples with a copy."""

    weights: str = "behaviour"


@pytest.mark.parametrize(
    ("source", "objective", "says"),
    [
        (STALE, Plain(), "Plain takes samples for those of the policy that learns"),
        (Later(**vars(STALE)), ClippedSurrogate(), "Later samples and scores in __call__"),
        (Behind(**vars(STALE)), ClippedSurrogate(), "samples come from the copy behaviour"),
        (replace(STALE, overlap=True), ClippedSurrogate(), "computes on the cores that sample"),
    ],
)
def test_what_cannot_bear_it_is_refused_before_anything_is_loaded(
    tmp_path: Path, source: Source, objective: object, says: str
) -> None:
    ((key, message),) = rollouts.problems(toy_run(tmp_path, source, objective, 1))
    assert key == "source.stale"
    assert says in message


def test_staleness_by_itself_is_accepted(tmp_path: Path) -> None:
    assert not list(rollouts.problems(toy_run(tmp_path, STALE, ClippedSurrogate(), 1)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"overlap": False}, "nothing is sampled while scores come in"),
        ({"structure": Perceptual(Saliency())}, "looks at samples that were scored"),
    ],
)
def test_fields_that_do_not_go_with_it_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(STALE, **changes)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{type: on_policy_steps, stale: 2}", r"stale: got the number 2, expected one of 0, 1"),
        ("{type: on_policy, stale: 1}", r"OnPolicy has no such field; its stale is fixed: Steps that the policy which"),
    ],
)
def test_other_values_and_other_sources_are_refused(written: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build.build(Source, yaml_nodes.parse(written, "run.yaml"))
