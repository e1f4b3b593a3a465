"""What the objectives of samples and preferences promise one by one: values at the reference, signs, special cases."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Pairs, Samples
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.adpo import ADPO
from alignment.objectives.forward_process.kto import KTO
from alignment.objectives.forward_process.noising import draw_points, mean_square
from alignment.objectives.forward_process.rwr import RWR
from alignment.objectives.forward_process.sft import SFT
from alignment.objectives.preference.base import logistic
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.seppo import SePPO
from tests.support.policies import PROMPTS, build
from tests.support.tiny import FLUX_CALL, SD15_CALL, tiny_sd15

SAME = 1e-5  # float32
GRADIENT = 1e-4  # relative: float32 through a network, sums in another order
gains = st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=6)


def samples(advantage: list[float] | Tensor, group: list[int] | None = None) -> Samples:
    credit = torch.as_tensor(advantage, dtype=torch.float32)
    n = len(credit)
    ids = torch.zeros(n, dtype=torch.int64) if group is None else torch.tensor(group)
    return Samples(("",) * n, torch.arange(n), ids, torch.zeros(n, dtype=torch.int64), torch.zeros(n, 1), credit)


def of(objective: KTO | ADPO, gain: Tensor, batch: Samples) -> Loss:
    return objective.of_gains(gain, batch, batch.group)


def slope(objective: KTO | ADPO, gain: Tensor, batch: Samples) -> Tensor:
    leaf = gain.detach().clone().requires_grad_()
    return torch.autograd.grad(of(objective, leaf, batch).per_row.sum(), leaf)[0]


# ---- DPO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_dpo_starts_at_ln_2_and_pulls_by_the_errors_whatever_the_network_predicts(
    prediction: str, flux_folder: Path, tmp_path: Path
) -> None:
    if prediction == "flow":
        policy = build(flux_folder, FLUX_CALL)
    else:
        pipe = tiny_sd15()
        pipe.register_modules(scheduler=DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction))
        pipe.save_pretrained(tmp_path)
        policy = build(tmp_path, {**SD15_CALL, "guidance_scale": 1.0})
    assert policy.path.prediction == prediction
    assert policy.probed is not None
    chosen, rejected = (torch.randn(2, *policy.probed[1].shape[1:], generator=Draw(k).generator("x")) for k in (0, 1))
    rows = torch.arange(2)
    batch = Pairs(PROMPTS, rows, rows, torch.zeros(2, dtype=torch.int64), chosen, rejected, torch.ones(2))
    nobody: Any = None  # one process, no scorer
    ctx, beta = Context(0, policy, Draw(0), nobody, nobody), 20.0

    def gradient() -> Tensor:
        found = torch.cat([p.grad.flatten() for p in policy.trainable.values() if p.grad is not None])
        for p in policy.trainable.values():
            p.grad = None
        return found

    losses: list[Tensor] = []
    DPO(beta=beta)(ctx, batch, lambda loss: (losses.append(loss.per_row.detach()), loss.per_row.sum().backward()))
    torch.testing.assert_close(losses[0], torch.full((2,), math.log(2)))
    pulled = gradient()
    for sign, x0 in ((1.0, chosen), (-1.0, rejected)):
        (point,) = draw_points(ctx, batch, x0, DPO().times, 1)

        def receive(k: int, v: Tensor, sign: float = sign, target: Tensor = point.target) -> None:
            (sign * beta / 4 * mean_square(v.float() - target)).sum().backward()

        policy.visit(batch, [(point.x, point.t)], receive, grad=True)
    expected = gradient()
    assert expected.norm() > 0
    assert (pulled - expected).norm() <= GRADIENT * expected.norm()


def test_a_sum_over_elements_wants_beta_divided_by_their_number() -> None:
    gain, one = torch.tensor([0.01, -0.02]), torch.ones(2)
    torch.testing.assert_close(logistic(gain * 64, one, 2000.0 / 64), logistic(gain, one, 2000.0))


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_dpo_moves_mass_until_it_explains_the_preferences(share: float) -> None:
    """Two spots; `share` of the pairs prefer the first. Their mass ratio becomes exp(logit(share) / (beta/2))."""
    beta, base = 4.0, torch.tensor([0.3, -0.2], dtype=torch.float64)
    logits = base.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.05)
    one = torch.ones((), dtype=torch.float64)
    for _ in range(400):
        drift = base.log_softmax(0) - logits.log_softmax(0)  # an error falls where a log likelihood rises
        gain = DPO(beta=beta).gain(drift[0], drift[1])
        adam.zero_grad()
        (share * DPO(beta=beta).of_gain(gain, one) + (1 - share) * DPO(beta=beta).of_gain(gain, -one)).backward()
        adam.step()
    ratio = (logits[0] - logits[1] - (base[0] - base[1])).exp().item()
    assert ratio == pytest.approx((share / (1 - share)) ** (2 / beta), rel=1e-3)


def test_a_gradient_taken_side_by_side_is_the_joint_one() -> None:
    chosen, rejected = torch.tensor([0.1], requires_grad=True), torch.tensor([-0.2], requires_grad=True)
    logistic(rejected - chosen, torch.ones(1), 10.0).sum().backward()
    share = torch.sigmoid(-5.0 * (rejected - chosen)).detach()  # a number, so that one side at a time is enough
    for side, sign in ((chosen, 1.0), (rejected, -1.0)):
        assert side.grad is not None
        torch.testing.assert_close(side.grad, 5.0 * sign * share)


# ---- SePPO -----------------------------------------------------------------------------------------------------------


def test_seppo_golden_step() -> None:
    # D(winner) = -0.1: the policy models it better, so the sample with D = 0.3 loses: gain 0.4. By hand, beta 10:
    # -log sigmoid(5 * 0.4) = log(1 + e^-2) = 0.126928.
    winner, sample = torch.tensor([-0.1, 0.1, 0.0]), torch.tensor([0.3, 0.3, 0.3])
    one = torch.ones(3)
    seppo = SePPO(beta=10.0)
    assert seppo.kappa(winner).tolist() == [1.0, -1.0, 0.0]
    # D(winner) = 0.1: the opponent models it better, both are learned from: gain -0.4, log(1 + e^2) = 2.126928.
    # A tie leaves the winner alone: gain 0, ln 2.
    expected = torch.tensor([0.126928, 2.126928, math.log(2)])
    torch.testing.assert_close(seppo.of_gain(seppo.gain(winner, sample), one), expected, rtol=0, atol=SAME)
    only = SePPO(beta=10.0, on_winner="winner_only")
    assert only.gain(winner, sample).tolist() == pytest.approx([0.4, -0.1, 0.0])
    spin = SePPO(beta=10.0, on_winner="loser")
    torch.testing.assert_close(spin.gain(winner, sample), DPO().gain(winner, sample))


def test_seppo_pulls_both_where_the_opponent_is_better_and_never_through_the_judgement() -> None:
    winner, sample = torch.tensor([0.1], requires_grad=True), torch.tensor([0.3], requires_grad=True)
    seppo = SePPO(beta=10.0)
    seppo.of_gain(seppo.gain(winner, sample), torch.ones(1)).sum().backward()
    for side in (winner, sample):
        assert side.grad is not None
        assert side.grad > 0  # a step down lowers the error on both
    assert not seppo.kappa(winner).requires_grad
    assert winner.grad == sample.grad


# ---- KTO -------------------------------------------------------------------------------------------------------------


def test_kto_golden_step() -> None:
    # Gains 0.1, 0.3 and -0.1 have the mean 0.1. beta 10: wanted 1 - sigmoid(10 (0.1 - 0.1)) = 0.5 and
    # 1 - sigmoid(2) = 0.119203; unwanted 1 - sigmoid(-10 (-0.1 - 0.1)) = 0.119203, times its weight 2.
    loss = of(KTO(beta=10.0, unwanted=2.0), torch.tensor([0.1, 0.3, -0.1]), samples([1.0, 1.0, -1.0]))
    torch.testing.assert_close(loss.per_row, torch.tensor([0.5, 0.119203, 0.238406]), rtol=0, atol=SAME)
    torch.testing.assert_close(loss.metrics["kto/reference_point"], torch.full((3,), 0.1))


def test_kto_costs_half_its_weight_at_the_reference() -> None:
    loss = of(KTO(unwanted=3.0), torch.zeros(2), samples([1.0, -1.0]))
    assert loss.per_row.tolist() == [0.5, 1.5]


@settings(max_examples=50)
@given(drawn=gains, beta=st.floats(0.1, 5))
def test_kto_raises_what_is_wanted_and_its_reference_point_has_no_gradient(drawn: list[float], beta: float) -> None:
    gain = torch.tensor(drawn)
    wanted = samples(torch.ones(len(gain)))
    pull = slope(KTO(beta=beta), gain, wanted)
    assert (pull < 0).all()  # each row's own, whatever the others do
    assert (of(KTO(beta=beta), gain, wanted).metrics["kto/reference_point"] >= 0).all()
    z = gain.mean().clamp(min=0)
    expected = -beta * torch.sigmoid(beta * (gain - z)) * torch.sigmoid(-beta * (gain - z))
    torch.testing.assert_close(pull, expected, rtol=1e-4, atol=SAME)


def test_balanced_labels_pull_alike_and_groups_have_points_of_their_own() -> None:
    pull = slope(KTO(beta=5.0), torch.zeros(4), samples([1.0, -1.0, 1.0, -1.0]))
    torch.testing.assert_close(pull.sum(), torch.tensor(0.0))
    loss = of(KTO(), torch.tensor([0.2, 0.4, -1.0, -1.0]), samples([1.0] * 4, [0, 0, 1, 1]))
    torch.testing.assert_close(loss.metrics["kto/reference_point"], torch.tensor([0.3, 0.3, 0.0, 0.0]))


# ---- ADPO ------------------------------------------------------------------------------------------------------------


def test_adpo_golden_step() -> None:
    # Three samples at the anchor, p = 1/3 each; A = (0, 0, ln 2), so q = (1, 1, 2) / 4. By hand:
    # KL = 2 (1/4) ln(3/4) + (1/2) ln(3/2) = 0.058892, and each row bears 3 q_i ln(3 q_i).
    loss = of(ADPO(), torch.zeros(3), samples([0.0, 0.0, math.log(2)]))
    assert loss.per_row.mean().item() == pytest.approx(0.058892, abs=SAME)
    assert loss.per_row[2].item() == pytest.approx(1.5 * math.log(1.5), abs=SAME)


@settings(max_examples=50)
@given(drawn=gains, seed=st.integers(0, 1000), shift=st.floats(-3, 3))
def test_adpo_pulls_by_what_was_learned_minus_what_is_wanted(drawn: list[float], seed: int, shift: float) -> None:
    gain, credit = torch.tensor(drawn), torch.randn(len(drawn), generator=torch.Generator().manual_seed(seed))
    objective, batch = ADPO(temperature=0.7, sharpness=0.5), samples(credit)
    learned, wanted = (gain / 0.7).softmax(0), (credit / 0.5).softmax(0)
    expected = len(gain) * (learned - wanted) / 0.7
    torch.testing.assert_close(slope(objective, gain, batch), expected, rtol=1e-3, atol=1e-4)
    moved = of(objective, gain + shift, batch).per_row.sum()
    torch.testing.assert_close(moved, of(objective, gain, batch).per_row.sum(), rtol=1e-3, atol=1e-4)


def test_adpo_with_a_sure_pair_is_dpo() -> None:
    gain, beta = torch.tensor([0.02, -0.03]), 50.0
    loss = of(ADPO(temperature=2 / beta, sharpness=0.01), gain, samples([1.0, -1.0]))
    expected = DPO(beta=beta).of_gain(gain[:1] - gain[1:], torch.ones(1))
    torch.testing.assert_close(loss.per_row.mean()[None], expected)


def test_adpo_is_at_rest_where_nothing_is_preferred_and_groups_do_not_meet() -> None:
    assert slope(ADPO(temperature=0.5), torch.zeros(4), samples([0.3] * 4)).abs().max() <= SAME
    both = samples([0.0, 1.0, 5.0, -5.0], [0, 0, 1, 1])
    gain = torch.tensor([0.1, 0.2, 0.3, 0.4])
    apart = [of(ADPO(temperature=0.5), gain[rows], replace(both[rows], group=torch.zeros(2, dtype=torch.int64)))
             for rows in (torch.tensor([0, 1]), torch.tensor([2, 3]))]  # fmt: skip
    torch.testing.assert_close(of(ADPO(temperature=0.5), gain, both).per_row, torch.cat([a.per_row for a in apart]))


# ---- imitation -------------------------------------------------------------------------------------------------------


def test_rwr_is_sft_at_an_endless_temperature_and_prefers_the_better_else() -> None:
    credit = torch.tensor([-1.0, 0.0, 2.0, 50.0])
    assert RWR(temperature=1e9).weight(credit).tolist() == SFT().weight(torch.ones(4)).tolist()
    weight = RWR(temperature=1.0, limit=20.0).weight(credit)
    assert weight.tolist() == pytest.approx([math.exp(-1), 1.0, math.exp(2), 20.0])


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (SePPO, {"beta": 0.0}),
        (KTO, {"beta": -1.0}),
        (KTO, {"wanted": -1.0}),
        (ADPO, {"temperature": 0.0}),
        (ADPO, {"sharpness": 0.0}),
        (RWR, {"temperature": 0.0}),
        (SFT, {"points": 0}),
        (KTO, {"points": 0}),
    ],
)
def test_bad_settings_are_refused(kind: type, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        kind(**wrong)
