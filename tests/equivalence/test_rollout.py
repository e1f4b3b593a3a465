"""What a rollout saves changes its cost and not its result."""

from dataclasses import replace

import pytest
import torch

from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.random_streams import Draw
from reward_models.base import Rewards
from samplers import sample
from samplers.dynamics.coefficient_preserving import CoefficientPreserving
from samplers.dynamics.flow_sde import FlowSDE
from samplers.dynamics.ode import ODE
from samplers.rollout import observe_prefix
from samplers.windows.base import Choice
from tests.support.policies import ALL, CASES, DYNAMICS, GROUP, PROMPTS, ROWS, build, counted, perturb, plan

PATH = 2 * ROWS
"""Rounding of a step is carried through up to six."""


@pytest.fixture(scope="module", params=["flux", "sd15 guided"])
def case(request):
    return request.param


@pytest.fixture
def dynamics(case):
    return DYNAMICS[case.split()[0]][0]


@pytest.fixture(scope="module")
def policy(case, flux_folder, sd15_folder):
    """Return a policy that every test samples from: it is one whose rollouts leave no trace, as a test below says."""
    folder = flux_folder if case == "flux" else sd15_folder
    made = build(folder, {**CASES[case], "num_inference_steps": 6})
    perturb(made)
    return made


def same(one, other):
    torch.testing.assert_close(one.x0, other.x0, atol=PATH, rtol=PATH)
    torch.testing.assert_close(one.pixels, other.pixels, atol=PATH, rtol=PATH)
    assert one.records.keys() == other.records.keys()
    for k, record in one.records.items():
        for name in ("x", "model_output", "x_next"):
            torch.testing.assert_close(getattr(record, name), getattr(other.records[k], name), atol=PATH, rtol=PATH)


@pytest.mark.parametrize("choice", [ALL, Choice((2, 3), (2, 3)), Choice((1, 2, 4), (2,)), Choice((4,), (4,))])
def test_a_shared_prefix_changes_nothing(policy, dynamics, choice):
    shared = sample(policy.call, plan(policy, dynamics, choice))
    same(shared, sample(policy.call, plan(policy, dynamics, choice, share_prefix=False)))
    assert sorted(shared.records) == list(choice.trained)
    assert shared.x0.shape[0] == len(PROMPTS) * GROUP


def test_samples_of_a_group_share_what_comes_before_they_part(policy, dynamics):
    record = sample(policy.call, plan(policy, dynamics, Choice((2,), (2,)))).records[2]
    for group in record.x.split(GROUP):
        assert torch.equal(group, group[:1].expand_as(group))
    for group in record.x_next.split(GROUP):
        assert not torch.equal(group[0], group[1])


@pytest.mark.parametrize("branch", [True, False], ids=["branch", "window"])
def test_the_same_noise_makes_the_same_sample_and_no_credit(policy, dynamics, branch):
    made = plan(policy, dynamics, Choice((2,), (2,), branch=branch))
    alike = replace(made, noise=lambda k, shape: made.noise(k, shape)[::GROUP].repeat_interleave(GROUP, 0))
    path = sample(policy.call, alike)
    pictures = path.pixels.unflatten(0, (-1, GROUP))
    assert torch.equal(pictures, pictures[:, :1].expand_as(pictures))
    group = torch.arange(len(PROMPTS)).repeat_interleave(GROUP)
    assert not GroupNorm()(Rewards(path.pixels.flatten(1).mean(dim=1)), group).any()


def test_branches_are_samples_that_share_a_state(policy, dynamics):
    branched = sample(policy.call, plan(policy, dynamics, Choice((2,), (2,), branch=True)))
    apart = sample(policy.call, plan(policy, dynamics, Choice((2,), (2,)), share_prefix=False))
    torch.testing.assert_close(branched.x0, apart.x0, atol=PATH, rtol=PATH)
    one, other = branched.records[2], apart.records[2]
    assert one.x_next.shape[:2] == (len(PROMPTS), GROUP)
    assert other.x_next.shape[:2] == (len(PROMPTS) * GROUP, 1)
    torch.testing.assert_close(one.x.repeat_interleave(GROUP, 0), other.x, atol=PATH, rtol=PATH)
    torch.testing.assert_close(one.x_next.flatten(0, 1), other.x_next[:, 0], atol=PATH, rtol=PATH)


def test_prompts_together_or_one_at_a_time(policy, dynamics):
    whole = plan(policy, dynamics)
    together = sample(policy.call, whole)
    for i in range(len(PROMPTS)):
        ids = torch.arange(GROUP) + i * GROUP
        part = replace(
            whole,
            prompts=PROMPTS[i : i + 1],
            seeds=whole.seeds[i : i + 1],
            noise=lambda k, shape, ids=ids: Draw(0).normal("action", ids, k, shape),
        )
        torch.testing.assert_close(sample(policy.call, part).x0, together.x0[ids], atol=PATH, rtol=PATH)


def test_samples_with_noise_of_their_own_start_apart(policy, dynamics):
    seeds = torch.arange(len(PROMPTS) * GROUP)
    apart = sample(policy.call, plan(policy, dynamics, seeds=seeds))
    assert not torch.equal(apart.records[0].x[0], apart.records[0].x[1])
    again = sample(policy.call, plan(policy, dynamics, seeds=seeds))
    assert torch.equal(apart.x0, again.x0)


def test_a_rollout_remembers_nothing_of_the_one_before(policy, dynamics):
    short = plan(policy, dynamics, Choice((1,), (1,)), tail=2)
    first = sample(policy.call, short)
    sample(policy.call, plan(policy, dynamics, seeds=torch.tensor([7, 8])))
    second = sample(policy.call, short)
    assert torch.equal(first.x0, second.x0)
    assert torch.equal(first.pixels, second.pixels)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, [2, 2, 6, 6, 6, 6]),
        ({"tail": 2}, [2, 2, 6, 6]),
        ({"tail": 9}, [2, 2, 6, 6, 6, 6]),
        ({"tail": 0.5}, [2, 2, 6, 6]),
        ({"tail": 0.01}, [2, 2, 6]),
        ({"share_prefix": False}, [6] * 6),
        ({"share_prefix": False, "tail": 1}, [6] * 3),
    ],
    ids=str,
)
def test_the_denoiser_runs_no_more_than_it_must(policy, dynamics, changes, rows, case):
    made = plan(policy, dynamics, Choice((1,), (1,)), **changes)
    with counted(policy.denoiser) as seen:
        sample(policy.call, made)
    assert made.visits(single=False) == len(rows)
    assert seen == [n * (2 if "guided" in case else 1) for n in rows]


def test_a_tail_ends_in_data_near_where_all_its_steps_end(flux_folder):
    policy = build(flux_folder, {**CASES["flux"], "num_inference_steps": 16})
    every, near, far = (
        sample(policy.call, plan(policy, FlowSDE(), Choice((1,), (1,)), tail=tail)).x0 for tail in (None, 14, 1)
    )
    assert (near - every).norm() < 0.2 * (far - every).norm()


def test_looking_at_a_round_returns_the_state_there(policy, dynamics):
    x, v, grid = observe_prefix(policy.call, PROMPTS, torch.tensor([10, 11]), 2, policy.rounds)
    record = sample(policy.call, plan(policy, dynamics, Choice((2,), (2,), branch=True))).records[2]
    assert torch.equal(x.float(), record.x)
    assert torch.equal(v.float(), record.model_output)
    assert len(grid) == policy.rounds
    assert grid.arrivals[-1][1] < 0.05


def test_a_deterministic_rule_gives_no_transitions(policy):
    with pytest.raises(ValueError, match="ODE is deterministic here"):
        sample(policy.call, plan(policy, ODE()))


def test_a_trained_step_without_noise_is_refused(policy, case):
    if case == "flux":  # the last step of a flow has no noise left to keep
        with pytest.raises(ValueError, match="step 5 is to be trained but its std is 0 under CoefficientPreserving"):
            sample(policy.call, plan(policy, CoefficientPreserving(), Choice((4, 5), (4, 5))))


def test_a_rollout_without_a_window_is_the_pipeline(policy):
    quiet = sample(policy.call, plan(policy, ODE(), Choice((), ())))
    assert quiet.records == {}
    media = policy.generate(PROMPTS, torch.tensor([10, 11]), {})
    torch.testing.assert_close(quiet.pixels[::GROUP], media.pixels, atol=PATH, rtol=PATH)
