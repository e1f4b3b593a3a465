"""What is particular to each objective: its formula, its special cases, and where its gradient vanishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Samples, Transitions
from alignment.errors import ConfigError
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.forward_process.noising import Point
from alignment.objectives.forward_process.weighted_matching import WeightedMatching
from alignment.objectives.policy_gradient.base import Stepwise
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.guarded_surrogate import GuardedSurrogate
from alignment.objectives.policy_gradient.spo import SPO
from reward_models.base import Rewards
from samplers import Step
from samplers.paths.path import RectifiedFlow, VariancePreserving

PATH = RectifiedFlow()
ROWS, ACTIONS, LATENT = 3, 4, (2, 3)
A, B, STD = 0.9, -0.3, 0.5
MEAN_STD = 0.4

FLOAT32 = 1e-5  # relative, of densities computed in float32
DIFFERENCE = 1e-6  # step of central differences in float64
AGREE = 1e-6  # relative error of those: DIFFERENCE^2, and rounding 1e-16 / DIFFERENCE
SPREAD = 0.05  # relative error of a variance of 20,000 draws: five standard errors
ARRIVED = 0.05  # where noise of the credit outweighs its pull: several standard errors of a step


def transitions(advantage: Tensor) -> Transitions:
    """Return one trained step with `ACTIONS` actions drawn from each of `ROWS` states."""
    x, v = torch.randn(ROWS, 1, *LATENT), torch.randn(ROWS, 1, *LATENT)
    noise = torch.randn(ROWS, 1, ACTIONS, *LATENT)
    return Transitions(
        prompts=("",) * ROWS,
        seeds=torch.arange(ROWS),
        group=torch.arange(ROWS),
        chunk=torch.zeros(ROWS, dtype=torch.int64),
        index=torch.zeros(ROWS, 1, dtype=torch.int64),
        x=x,
        x_next=(A * x + B * v)[:, :, None] + STD * noise,
        model_output=v,
        coefficients=torch.tensor([A, B, STD]).expand(ROWS, 1, 3),
        advantage=advantage,
        mean_std=torch.full((ROWS,), MEAN_STD),
    )


def samples(advantage: Tensor) -> Samples:
    n = len(advantage)
    x0 = torch.randn(n, *LATENT, dtype=torch.float64)
    return Samples(("",) * n, torch.arange(n), torch.arange(n), torch.zeros(n, dtype=torch.int64), x0, advantage)


def point(batch: Samples) -> Point:
    noise = torch.randn_like(batch.x0)
    t = torch.linspace(0.2, 0.9, len(batch), dtype=torch.float64)
    level = t[:, None, None]
    return Point(t, (1 - level) * batch.x0 + level * noise, noise - batch.x0)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    v = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(v).sum(), v)
    return found


def finite_difference(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the gradient of the summed loss by central differences."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[i] = DIFFERENCE
        found.view(-1)[i] = (loss(at + step).sum() - loss(at - step).sum()) / (2 * DIFFERENCE)
    return found


# ---- clipped surrogate -----------------------------------------------------------------------------------------------


def log_prob(batch: Transitions, v: Tensor) -> Tensor:
    """Return `[n, A]`, the mean log density over the latent, by torch.distributions in float64."""
    mean = (A * batch.x[:, 0] + B * v).double()[:, None]
    return Normal(mean, STD).log_prob(batch.x_next[:, 0].double()).flatten(2).mean(dim=2)


def test_at_ratio_one_the_loss_is_minus_the_credit_and_its_gradient_the_policy_gradient() -> None:
    advantage = torch.randn(ROWS, ACTIONS)
    batch = transitions(advantage)
    old = batch.model_output[:, 0]
    objective = ClippedSurrogate(clip=1e-4)
    torch.testing.assert_close(objective.loss(batch, 0, old, None).per_row, -advantage.mean(dim=1))
    expected = gradient(lambda v: -(advantage * log_prob(batch, v)).mean(dim=1), old)
    found = gradient(lambda v: objective.loss(batch, 0, v, None).per_row, old)
    torch.testing.assert_close(found, expected, rtol=FLOAT32, atol=FLOAT32 * expected.abs().max().item())


def test_the_collapsed_gradient_is_one_cotangent() -> None:
    """dL/dv = -mean_i A_i z_i b / (std D): the group needs one backward pass."""
    batch = transitions(torch.randn(ROWS, ACTIONS))
    z = (batch.x_next[:, 0] - (A * batch.x[:, 0] + B * batch.model_output[:, 0])[:, None]) / STD
    credit = batch.advantage[:, :, None, None]
    expected = -(credit * z).mean(dim=1) * B / STD / z[0, 0].numel()
    found = gradient(lambda v: ClippedSurrogate().loss(batch, 0, v, None).per_row, batch.model_output[:, 0])
    torch.testing.assert_close(found, expected, rtol=FLOAT32, atol=FLOAT32 * expected.abs().max().item())


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["praised", "blamed"])
@pytest.mark.parametrize("more_likely", [True, False], ids=["more likely", "less likely"])
def test_the_gradient_is_cut_where_the_ratio_has_gone_far_enough(sign: float, more_likely: bool) -> None:
    """Praised and already likelier than 1 + clip, or blamed and already less likely than 1 - clip: nothing is left."""
    batch = transitions(torch.full((ROWS, ACTIONS), sign))
    batch = batch.__class__(**{**vars(batch), "x_next": batch.x_next[:, :, :1], "advantage": batch.advantage[:, :1]})
    towards = gradient(lambda v: log_prob(batch, v), batch.model_output[:, 0])
    v = batch.model_output[:, 0] + (0.2 if more_likely else -0.2) * towards / towards.norm()
    objective = ClippedSurrogate(clip=1e-4)
    ratio = objective.loss(batch, 0, v, None).metrics["ratio/mean"]
    assert bool((ratio > 1 + 1e-4).all()) == more_likely
    assert bool((ratio < 1 - 1e-4).all()) != more_likely
    found = gradient(lambda v: objective.loss(batch, 0, v, None).per_row, v)
    if more_likely == (sign > 0):
        assert torch.equal(found, torch.zeros_like(found))
    else:
        weighed = gradient(lambda v: -sign * (log_prob(batch, v) - log_prob(batch, batch.model_output[:, 0])).exp(), v)
        torch.testing.assert_close(found, weighed, rtol=1e-4, atol=1e-4 * weighed.abs().max().item())


def test_the_divergence_is_that_of_torch_distributions() -> None:
    batch = transitions(torch.zeros(ROWS, ACTIONS))
    v, reference = torch.randn(2, ROWS, *LATENT)
    here, there = (Normal(A * batch.x[:, 0] + B * z, STD) for z in (v, reference))
    expected = kl_divergence(here, there).flatten(1).mean(dim=1)
    loss = ClippedSurrogate(kl=2.0).loss(batch, 0, v, reference)
    torch.testing.assert_close(loss.metrics["kl/reference"], expected, rtol=FLOAT32, atol=0)
    torch.testing.assert_close(loss.per_row, 2 * expected, rtol=FLOAT32, atol=0)


@pytest.mark.parametrize(("weight", "factor"), [("true", 1.0), ("equal", STD / abs(B)), ("sigma", STD / MEAN_STD)])
def test_a_step_weight_multiplies_the_surrogate(weight: str, factor: float) -> None:
    batch = transitions(torch.randn(ROWS, ACTIONS))
    v = batch.model_output[:, 0]
    plain, weighed = (ClippedSurrogate(weight=w).loss(batch, 0, v, None).per_row for w in ("true", weight))
    torch.testing.assert_close(weighed, factor * plain)


def test_a_gaussian_policy_walks_straight_to_the_best_action() -> None:
    """Reward -(x - 3)^2 of the action x ~ N(v, STD^2): every step brings the mean nearer."""
    mean, away, actions = torch.zeros(1, 1), [3.0], 4096
    for _ in range(40):
        action = mean + STD * torch.randn(actions)
        credit = GroupNorm()(Rewards(-(action[0] - 3).square()), torch.zeros(actions, dtype=torch.int64))
        batch = transitions(credit[None])[torch.tensor([0])]
        batch = replace(batch, x=torch.zeros(1, 1, 1), x_next=action[:, None, :, None], model_output=mean[:, None])
        batch = replace(batch, coefficients=torch.tensor([[[0.0, 1.0, STD]]]))
        mean = mean - 0.1 * gradient(lambda v, b=batch: ClippedSurrogate().loss(b, 0, v, None).per_row, mean)
        away.append(abs(mean.item() - 3))
    assert all(after < max(before, ARRIVED) for before, after in pairwise(away))
    assert away[-1] < ARRIVED


@pytest.mark.parametrize("kind", [ClippedSurrogate, GuardedSurrogate, SPO])
@pytest.mark.parametrize("moved", [0.0, 0.1], ids=["at the policy that acted", "elsewhere"])
def test_no_credit_is_no_gradient_at_all(kind: type[Stepwise], moved: float) -> None:
    batch = transitions(torch.zeros(ROWS, ACTIONS))
    v = batch.model_output[:, 0] + moved * torch.randn(ROWS, *LATENT)
    found = gradient(lambda z: kind().loss(batch, 0, z, None).per_row, v)
    assert torch.equal(found, torch.zeros_like(found))


# ---- its siblings ----------------------------------------------------------------------------------------------------


def test_the_parabola_is_lowest_where_its_clip_says() -> None:
    """At rho = 1 it is the policy gradient; at rho = 1 + clip sign(A) it stands still; beyond, it pulls back."""
    ratio = torch.tensor([1.0, 1.2, 1.4, 0.8, 0.6], dtype=torch.float64)
    for sign in (1.0, -1.0):
        slope = gradient(lambda rho, sign=sign: SPO(clip=0.2).of_ratio(rho, sign * torch.ones_like(rho)), ratio)
        assert slope[0] == -sign
        at, beyond = (1, 2) if sign > 0 else (3, 4)
        assert abs(slope[at]) <= FLOAT32
        assert sign * slope[beyond] > 0


def guarded(batch: Transitions, v: Tensor) -> Tensor:
    step = Step.from_coefficients(batch.coefficients[:, 0])
    return GuardedSurrogate().centred_ratio(step, batch, 0, v)


def test_the_guarded_ratio_is_the_plain_one_centred_and_scaled() -> None:
    """It is std (log rho + mean |d mu|^2 / (2 std^2)), as the paper writes it."""
    batch = transitions(torch.randn(ROWS, ACTIONS))
    v = batch.model_output[:, 0] + 0.1 * torch.randn(ROWS, *LATENT)
    plain = log_prob(batch, v) - log_prob(batch, batch.model_output[:, 0])
    shift = (B * (v - batch.model_output[:, 0])).square().flatten(1).mean(dim=1, keepdim=True)
    expected = STD * (plain + shift / (2 * STD**2))
    torch.testing.assert_close(guarded(batch, v).double(), expected.double(), rtol=1e-3, atol=1e-6)


def test_the_guarded_ratio_is_one_on_average_and_the_plain_one_below() -> None:
    batch = transitions(torch.randn(ROWS, ACTIONS))
    many = 20_000
    start = (A * batch.x + B * batch.model_output)[:, :, None]
    batch = replace(batch, x_next=start + STD * torch.randn(ROWS, 1, many, *LATENT))
    v = batch.model_output[:, 0] + 1.0
    noise = (B / many**0.5) * 5  # five standard errors of a mean of d mu z, at most |d mu| each
    assert guarded(batch, v).mean(dim=1).abs().max() <= abs(noise)
    assert (log_prob(batch, v) - log_prob(batch, batch.model_output[:, 0])).mean(dim=1).max() < 0


def test_the_guarded_ratio_spreads_alike_whatever_the_std() -> None:
    """Var log rho = mean(d mu^2) / D."""
    batch, many = transitions(torch.randn(ROWS, ACTIONS)), 20_000
    shift, noise = B * torch.randn(ROWS, *LATENT), torch.randn(ROWS, 1, many, *LATENT)
    start = (A * batch.x + B * batch.model_output)[:, :, None]
    expected = shift.square().flatten(1).mean(dim=1) / shift[0].numel()
    for std in (0.05, 2.0):
        coefficients = torch.tensor([A, B, std]).expand(ROWS, 1, 3)
        drawn = replace(batch, x_next=start + std * noise, coefficients=coefficients)
        spread = guarded(drawn, batch.model_output[:, 0] + shift / B).var(dim=1)
        torch.testing.assert_close(spread, expected, rtol=SPREAD, atol=0)


# ---- DiffusionNFT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "r"), [(0.0, 0.5), (5.0, 1.0), (-5.0, 0.0), (9.0, 1.0), (-9.0, 0.0), (2.5, 0.75)]
)
def test_the_credit_becomes_a_probability(advantage: float, r: float) -> None:
    batch = samples(torch.full((1,), advantage, dtype=torch.float64))
    where = point(batch)
    v, old = torch.randn(2, *batch.x0.shape, dtype=torch.float64)
    loss = NFT(beta=1.0, limit=5.0, self_normalised=False, kl=0).loss(PATH, batch, where, v, old, old)
    positive, negative = loss.metrics["nft/positive"], loss.metrics["nft/negative"]
    torch.testing.assert_close(loss.per_row, 5.0 * (r * positive + (1 - r) * negative))


def test_full_praise_at_beta_one_is_supervised_fine_tuning() -> None:
    batch = samples(torch.full((ROWS,), 5.0, dtype=torch.float64))
    where = point(batch)
    v, old = torch.randn(2, *batch.x0.shape, dtype=torch.float64)
    objective = NFT(beta=1.0, limit=5.0, kl=0, self_normalised=False)
    found = gradient(lambda z: objective.loss(PATH, batch, where, z, old, old).per_row, v)
    expected = gradient(lambda z: 5.0 * (z - where.target).square().flatten(1).mean(dim=1), v)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_at_the_behaviour_policy_the_gradient_is_that_of_the_paper(beta: float) -> None:
    """2 beta (2r - 1) (v_old - v*) / D, times limit / beta; so nothing at r = 1/2."""
    advantage = torch.tensor([-5.0, 0.0, 3.0], dtype=torch.float64)
    batch = samples(advantage)
    where, old = point(batch), torch.randn(ROWS, *LATENT, dtype=torch.float64)
    objective = NFT(beta=beta, limit=5.0, kl=0, self_normalised=False)
    found = gradient(lambda z: objective.loss(PATH, batch, where, z, old, old).per_row, old)
    r = (advantage / 10 + 0.5)[:, None, None]
    torch.testing.assert_close(found, 2 * 5.0 * (2 * r - 1) * (old - where.target) / old[0].numel())
    assert found[1].abs().max() < 1e-12


def test_the_two_implicit_policies_lie_opposite_each_other() -> None:
    """v+ + v- = 2 v_old: the negative branch at v is the positive one at the mirror image of v."""
    batch = samples(torch.zeros(ROWS, dtype=torch.float64))
    where = point(batch)
    v, old = torch.randn(2, *batch.x0.shape, dtype=torch.float64)
    objective = NFT(beta=0.3, kl=0)
    here = objective.loss(PATH, batch, where, v, old, old).metrics
    mirror = objective.loss(PATH, batch, where, 2 * old - v, old, old).metrics
    torch.testing.assert_close(here["nft/negative"], mirror["nft/positive"])


def test_the_self_normalised_error_is_that_of_the_clean_prediction_over_its_size() -> None:
    batch = samples(torch.full((ROWS,), 5.0, dtype=torch.float64))
    where, v = point(batch), torch.randn(ROWS, *LATENT, dtype=torch.float64)
    error = where.x - where.t[:, None, None] * v - batch.x0
    expected = error.square().flatten(1).mean(dim=1) / error.abs().flatten(1).mean(dim=1)
    loss = NFT(beta=1.0, limit=5.0, kl=0).loss(PATH, batch, where, v, v, v)
    torch.testing.assert_close(loss.per_row, 5.0 * expected, rtol=FLOAT32, atol=0)


def test_the_gradient_by_finite_differences_holds_the_size_that_normalises_the_error_fixed() -> None:
    batch = samples(torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64))
    where, t = point(batch), torch.linspace(0.2, 0.9, ROWS, dtype=torch.float64)[:, None, None]
    v, old, reference = 0.5 * torch.randn(3, ROWS, *LATENT, dtype=torch.float64)
    objective = NFT(beta=0.7, kl=0.3)

    def error(z: Tensor, sign: float) -> Tensor:
        return (where.x - t * (old + sign * 0.7 * (z - old)) - batch.x0).flatten(1)

    size = {sign: error(v, sign).abs().mean(dim=1) for sign in (1.0, -1.0)}

    def held(z: Tensor) -> Tensor:
        positive, negative = (error(z, sign).square().mean(dim=1) / size[sign] for sign in size)
        r = batch.advantage / 10 + 0.5
        drift = (z - reference).square().flatten(1).mean(dim=1)
        return (r * positive + (1 - r) * negative) * 5.0 / 0.7 + 0.3 * drift

    expected = finite_difference(held, v)
    found = gradient(lambda z: objective.loss(PATH, batch, where, z, old, reference).per_row, v)
    torch.testing.assert_close(found, expected, rtol=AGREE, atol=AGREE * expected.abs().max().item())


def test_a_pipeline_that_predicts_noise_is_judged_by_its_clean_prediction_too() -> None:
    path = VariancePreserving(torch.linspace(0.99, 0.01, 1000, dtype=torch.float64))
    batch = samples(torch.full((ROWS,), 5.0, dtype=torch.float64))
    t = torch.linspace(0.2, 0.9, ROWS, dtype=torch.float64)
    alpha, sigma = (z[:, None, None] for z in path.marginal(t))
    noise = torch.randn_like(batch.x0)
    where = Point(t, alpha * batch.x0 + sigma * noise, noise)
    exact = NFT(kl=0).loss(path, batch, where, noise, noise, noise)
    assert exact.per_row.abs().max() < 1e-9


# ---- AWM -------------------------------------------------------------------------------------------------------------


def test_at_the_behaviour_policy_the_ratio_is_one_and_the_gradient_weighted_matching() -> None:
    advantage = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    batch = samples(advantage)
    where, old = point(batch), torch.randn(ROWS, *LATENT, dtype=torch.float64)
    for weighting, w in {"one": torch.ones_like(where.t), "t": where.t, "t_squared": where.t**2}.items():
        objective = WeightedMatching(weighting=weighting)
        loss = objective.loss(batch, where, old, old, old)
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones(ROWS, dtype=torch.float64))
        torch.testing.assert_close(loss.per_row, -advantage)
        found = gradient(lambda z, o=objective: o.loss(batch, where, z, old, old).per_row, old)
        expected = gradient(lambda z, w=w: advantage * w * (z - where.target).square().flatten(1).mean(dim=1), old)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["praised", "blamed"])
@pytest.mark.parametrize("nearer", [0.5, -0.5], ids=["more likely", "less likely"])
def test_the_gradient_of_matching_is_cut_where_the_ratio_has_gone_far_enough(sign: float, nearer: float) -> None:
    batch = samples(torch.full((ROWS,), sign, dtype=torch.float64))
    where, old = point(batch), torch.randn(ROWS, *LATENT, dtype=torch.float64)

    def ratio(z: Tensor) -> Tensor:
        was, now = ((each - where.target).square().flatten(1).mean(dim=1) for each in (old, z))
        return (was - now).exp()

    v = old + nearer * (where.target - old)
    found = gradient(lambda z: WeightedMatching(clip=1e-3).loss(batch, where, z, old, old).per_row, v)
    if sign * nearer > 0:
        assert torch.equal(found, torch.zeros_like(found))
    else:
        torch.testing.assert_close(found, -sign * gradient(ratio, v))


# ---- all that are smooth, by finite differences ----------------------------------------------------------------------

SMOOTH = {
    "nft": lambda b, p, v, old, ref: NFT(beta=0.7, kl=0.3, self_normalised=False).loss(PATH, b, p, v, old, ref),
    "awm": lambda b, p, v, old, ref: WeightedMatching(clip=50.0, kl=0.3, weighting="t").loss(b, p, v, old, ref),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    batch = samples(torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64))
    where = point(batch)
    v, old, reference = 0.5 * torch.randn(3, ROWS, *LATENT, dtype=torch.float64)

    def loss(z: Tensor) -> Tensor:
        return SMOOTH[name](batch, where, z, old, reference).per_row

    expected = finite_difference(loss, v)
    torch.testing.assert_close(gradient(loss, v), expected, rtol=AGREE, atol=AGREE * expected.abs().max().item())


@pytest.mark.parametrize(
    "bad",
    [
        lambda: ClippedSurrogate(clip=0),
        lambda: ClippedSurrogate(kl=-1),
        lambda: NFT(beta=0),
        lambda: NFT(points=0),
        lambda: WeightedMatching(clip=0),
    ],
)
def test_values_without_meaning_are_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="objective needs"):
        bad()
