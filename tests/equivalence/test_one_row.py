"""Pipelines that take one row a call are trained as others are: every door gives what a call with all rows gives."""

from dataclasses import replace

import pytest
import torch

from alignment.data.batches import Batch
from alignment.policy.call_forms import Form
from alignment.policy.policy import Policy
from alignment.policy.prepare import prepare
from samplers import Conductor, Look
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.ddim import DDIM
from samplers.windows.base import Choice
from tests.support.policies import (
    ALL,
    CASES,
    GROUP,
    PROMPTS,
    ROWS,
    build,
    counted,
    learn,
    log_ratio,
    perturb,
    plan,
    replayed,
    takes_one_row,
    transitions,
)

RATIO = 1e-6
"""|rho - 1| of unchanged weights, in float32."""
GRADIENT = 1e-4
"""Of the largest: rounding of gradients of rows that went through the network alone."""
FAMILIES = {"flux": DanceSDE(), "sd15 negative": DDIM()}
BRANCH = Choice((1,), (1,), branch=True)
SEEDS = torch.tensor([5, 6])


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def both(case, flux_folder, sd15_folder) -> tuple[Policy, Policy]:
    """Return a policy whose pipeline takes one row a call, and one whose pipeline takes many."""
    folder = flux_folder if case == "flux" else sd15_folder
    one = takes_one_row(build(folder, CASES[case], ready=False))
    prepare(one, PROMPTS)
    many = build(folder, CASES[case])
    for policy in (one, many):
        perturb(policy)
    return one, many


def near(a, b):
    torch.testing.assert_close(a, b, atol=ROWS * b.abs().max().item(), rtol=0)


def test_it_is_found_out_at_load(both):
    one, many = both
    assert (one.form, many.form) == (Form.BARE, Form.ROWS)
    assert one.embeddings.cacheable
    assert one.pipe.text_encoder is None  # every prompt's embedding was kept


def test_a_network_that_takes_one_row_is_enough(flux_folder):
    policy = build(flux_folder, CASES["flux"], ready=False)

    def refuse(module, args, named):
        if len(named["hidden_states"]) > 1:
            raise ValueError("one row, please")

    policy.denoiser.register_forward_pre_hook(refuse, with_kwargs=True)
    prepare(policy, PROMPTS)
    assert policy.form is Form.ALONE


@pytest.mark.parametrize("choice", [ALL, Choice((0, 2), (0, 2)), BRANCH], ids=["all", "some", "branch"])
def test_rollouts_and_their_replay(both, case, choice):
    one, _ = both
    (path, batch), (wanted, whole) = (transitions(policy, plan(policy, FAMILIES[case], choice)) for policy in both)
    near(path.x0, wanted.x0)
    near(path.pixels, wanted.pixels)
    for name in ("x", "x_next", "model_output", "coefficients"):
        near(getattr(batch, name), getattr(whole, name))
    for k, model_output in enumerate(replayed(one, batch)):
        assert len(model_output) == len(batch)
        assert log_ratio(batch, k, model_output).exp().sub(1).abs().max() <= RATIO


def test_rows_are_what_they_are_alone(both, case):
    one, _ = both
    together, apart = Conductor(), [Conductor(), Conductor()]
    pixels = one.call(together, PROMPTS, SEEDS, pixels=True)
    assert pixels is not None
    assert together.final is not None
    for row, conductor in enumerate(apart):
        own = slice(row, row + 1)
        assert torch.equal(one.call(conductor, PROMPTS[own], SEEDS[own], pixels=True), pixels[own])
        assert torch.equal(conductor.final, together.final[own])
    runs = [one.generate(PROMPTS[i : i + 1], SEEDS[i : i + 1], {}).pixels for i in range(len(PROMPTS))]
    assert torch.equal(one.generate(PROMPTS, SEEDS, {}).pixels, torch.cat(runs))


@pytest.mark.parametrize("choice", [ALL, BRANCH], ids=["all", "branch"])
def test_gradients(both, case, choice):
    batches = [transitions(policy, plan(policy, FAMILIES[case], choice))[1] for policy in both]
    credit = torch.randn(batches[0].advantage.shape, generator=torch.Generator().manual_seed(2))
    found, wanted = (learn(policy, replace(b, advantage=credit)) for policy, b in zip(both, batches, strict=True))
    assert found.keys() == wanted.keys() == both[0].trainable.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=GRADIENT * gradient.abs().max().item())


def test_visits_of_rows_at_times_of_their_own(both, case):
    one, many = both
    assert one.row_times
    rows = torch.arange(2)
    batch = Batch(PROMPTS, SEEDS, rows, rows)
    shape = transitions(many, plan(many, FAMILIES[case], BRANCH))[1].x.shape[2:]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    points = [(x, torch.tensor([0.25, 0.75])), (0.5 * x, torch.tensor([0.5, 0.1]))]
    answers = {policy: [] for policy in both}
    for policy, heard in answers.items():
        policy.visit(batch, points, lambda k, v, heard=heard: heard.append((k, v)), grad=False)
    assert [k for k, _ in answers[one]] == [0, 1]
    for (_, found), (_, wanted) in zip(answers[one], answers[many], strict=True):
        near(found, wanted)


def test_the_network_sees_one_row_a_call(both, case):
    one, _ = both
    guided = 2 if "sd15" in case else 1
    with counted(one.denoiser) as rows:
        _, batch = transitions(one, plan(one, FAMILIES[case], BRANCH))
        rows.clear()
        replayed(one, batch)
    assert rows == [guided] * len(PROMPTS)  # a group leaves one state
    assert batch.x_next.shape[2] == GROUP


def test_a_look_sees_all_rows(both):
    seen = {policy: [] for policy in both}
    for policy, found in seen.items():
        look = Look(lambda x, v, grid, found=found: found.append((x, v, grid)))
        policy.call(Conductor([look]), PROMPTS, SEEDS, pixels=False)
    ((x, v, grid),), ((other_x, other_v, other_grid),) = seen.values()
    near(x, other_x)
    near(v, other_v)
    assert grid == other_grid
