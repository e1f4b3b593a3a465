"""What is particular to DGPO and FPO, which read samples or errors together: their formulas and special cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss, Objective
from alignment.objectives.forward_process.adpo import ADPO
from alignment.objectives.forward_process.dgpo import DGPO
from alignment.objectives.forward_process.fpo import FPO, noise_error
from alignment.objectives.forward_process.noising import Point, draw_points
from alignment.sources.on_policy import OnPolicy
from alignment.training.loop import Trainer
from samplers.paths.path import RectifiedFlow, VariancePreserving
from tests.alignment.objectives.test_objectives import AGREE, LATENT, finite_difference, gradient, point, samples
from tests.support.toy import REWARD, saved, toy_run, trainer_of

EXACT = 1e-9  # relative, of float64
SAME = 1e-5  # relative: float32 sums in another order
COUNTED = 0.2  # relative error of a ratio of variances, each of 800 draws with tails cut: three standard errors
FLAT = RectifiedFlow()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=50)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    """Return a trainer whose live weights are its behaviour copy, and elsewhere than its reference."""
    made = trainer_of(toy_run(folder, OnPolicy(4, REWARD, group_size=4), FPO(), 1))
    made.policy.weights.keep("reference")
    move(made)
    made.policy.weights.refresh("behaviour", decay=0.0)
    yield made
    made.runtime.close()


def move(trainer: Trainer) -> None:
    with torch.no_grad():
        for p in trainer.policy.trainable.values():
            p += 0.03 * torch.randn(p.shape)


def sampled(trainer: Trainer) -> Samples:
    batch = trainer.experience(trainer.context(0)).batch
    assert isinstance(batch, Samples)
    return batch


def learned(trainer: Trainer, objective: Objective[Samples], batch: Samples) -> tuple[list[Loss], Tensor]:
    """Return the loss of each point and the flat gradient of their sum."""
    losses: list[Loss] = []

    def learn(loss: Loss) -> None:
        loss.per_row.sum().backward()
        losses.append(loss)

    objective(trainer.context(0), batch, learn)
    return losses, taken(trainer)


def taken(trainer: Trainer) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in trainer.policy.trainable.values() if p.grad is not None])
    trainer.runtime.optimizer.zero_grad()
    return found


def errors(v: Tensor, where: Point) -> Tensor:
    return (v - where.target).square().flatten(1).mean(dim=1)


def pair(advantage: float = 1.0) -> tuple:
    """Return a group of two, a point, and answers of the live, old and reference policies."""
    batch = samples(torch.tensor([advantage, -advantage], dtype=torch.float64))
    batch = replace(batch, group=torch.zeros(2, dtype=torch.int64))
    live, reference = torch.randn(2, *batch.x0.shape, dtype=torch.float64)
    return batch, point(batch), live, live.clone(), reference


# ---- DGPO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 3.0, 100.0])
def test_with_two_samples_it_is_diffusion_dpo_over_beta(beta: float) -> None:
    batch, where, v, old, reference = pair()

    def dpo(z: Tensor) -> Tensor:
        lost = errors(z, where) - errors(reference, where)
        return softplus(beta / 2 * (lost[0] - lost[1]))

    found = gradient(lambda z: DGPO(beta=beta).loss(batch, where, z, old, reference).per_row.mean(), v)
    torch.testing.assert_close(found, gradient(dpo, v) / beta, rtol=EXACT, atol=0)


def test_at_the_reference_every_group_pulls_by_one_half() -> None:
    batch, where, v, old, _ = pair()
    assert torch.equal(DGPO().loss(batch, where, v, old, v).metrics["dgpo/pull"], torch.full((2,), 0.5).double())


def test_a_group_that_has_learnt_its_order_pulls_less() -> None:
    batch, where, _, _, reference = pair()
    better = torch.stack([where.target[0] + 0.1, where.target[1] + 5.0])  # nearer the good, further from the bad
    pull = [
        DGPO(beta=1.0).loss(batch, where, v, v, reference).metrics["dgpo/pull"][0] for v in (better, better.flip(0))
    ]
    assert pull[0] < 0.5 < pull[1]


def test_groups_are_weighed_apart() -> None:
    one, where, v, old, reference = pair()
    both = replace(one, group=torch.tensor([0, 1]))
    apart = DGPO(beta=1.0).loss(both, where, v, old, reference).metrics["dgpo/pull"]
    lost = one.advantage * (errors(v, where) - errors(reference, where))
    torch.testing.assert_close(apart, torch.sigmoid(lost))


def test_a_ratio_beyond_the_clip_has_no_gradient_left() -> None:
    batch, where, v, _, reference = pair()
    praised = replace(batch, advantage=torch.ones(2, dtype=torch.float64))
    far = where.target + 3.0  # old was far off: v has gained on it
    found = gradient(lambda z: DGPO(clip=1e-2).loss(praised, where, z, far, reference).per_row, 0.1 * v + where.target)
    assert torch.equal(found, torch.zeros_like(found))


def test_the_gradient_is_that_of_finite_differences_with_the_weight_of_the_group_held_fixed() -> None:
    batch = samples(torch.tensor([1.5, -0.5, -1.0, 0.7, -0.7], dtype=torch.float64))
    batch = replace(batch, group=torch.tensor([7, 7, 7, 2, 2]))
    where = point(batch)
    v, old, reference = 0.5 * torch.randn(3, *batch.x0.shape, dtype=torch.float64)
    objective = DGPO(beta=3.0, clip=0.5, kl=0.3)
    pull = objective.loss(batch, where, v, old, reference).metrics["dgpo/pull"]

    def held(z: Tensor) -> Tensor:
        ratio = (errors(old, where) - errors(z, where)).exp()
        lost = torch.maximum(batch.advantage * (1 - ratio), batch.advantage * (1 - ratio.clamp(0.5, 1.5)))
        return pull * lost + 0.3 * (z - reference).square().flatten(1).mean(dim=1)

    expected = finite_difference(held, v)
    found = gradient(lambda z: objective.loss(batch, where, z, old, reference).per_row, v)
    torch.testing.assert_close(found, expected, rtol=AGREE, atol=AGREE * expected.abs().max().item())


@pytest.mark.parametrize(
    ("objective", "seen"), [(DGPO(points=2), "matching/error"), (ADPO(points=2), "gain/mean")], ids=["dgpo", "adpo"]
)
def test_a_group_shares_its_times_and_noise(trainer: Trainer, objective: Objective[Samples], seen: str) -> None:
    """So that copies of one sample err alike, and those of another group differently."""
    batch = sampled(trainer)
    move(trainer)
    one = replace(batch, x0=batch.x0[:1].expand_as(batch.x0))
    losses, _ = learned(trainer, objective, one)
    assert len(batch.seeds.unique()) == len(batch)
    for loss in losses:
        groups = torch.stack([loss.metrics[seen][batch.group == group] for group in batch.group.unique()])
        torch.testing.assert_close(groups, groups[:, :1].expand_as(groups), rtol=SAME, atol=SAME)
        assert len(groups) == len(groups[:, 0].unique()) == 4
        assert groups[:, 0].std() > 100 * SAME
    assert not torch.allclose(*(loss.metrics[seen] for loss in losses))


# ---- FPO -------------------------------------------------------------------------------------------------------------


def test_the_slope_is_that_of_the_clipped_loss() -> None:
    advantage = torch.tensor([2.0, 2.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    log_ratio = torch.tensor([0.0, 1.0, 0.0, -1.0, 1.0], dtype=torch.float64)
    value, slope = FPO(clip=0.05).surrogate(log_ratio, advantage)
    torch.testing.assert_close(value[:3], torch.tensor([-2.0, -2.1, 1.0], dtype=torch.float64))
    # praised and likelier already, blamed and less likely already: nothing; blamed and likelier: -A rho.
    expected = torch.tensor([-2.0, 0.0, 1.0, 0.0, torch.e], dtype=torch.float64)
    torch.testing.assert_close(slope, expected)


def test_the_error_is_that_of_the_noise_whatever_the_network_predicts() -> None:
    batch = samples(torch.zeros(3, dtype=torch.float64))
    where = point(batch)
    v = torch.randn(3, *LATENT, dtype=torch.float64)
    t = where.t[:, None, None]
    noise, predicted = where.x + (1 - t) * where.target, where.x + (1 - t) * v
    torch.testing.assert_close(noise_error(FLAT, where, v), (predicted - noise).square().flatten(1).mean(dim=1))
    path = VariancePreserving(torch.linspace(0.99, 0.01, 1000, dtype=torch.float64))
    torch.testing.assert_close(noise_error(path, where, v), (v - where.target).square().flatten(1).mean(dim=1))


def test_where_nothing_has_moved_the_ratio_is_one_and_the_loss_minus_the_credit(trainer: Trainer) -> None:
    batch = sampled(trainer)
    losses, found = learned(trainer, FPO(points=4), batch)
    for loss in losses:
        assert torch.equal(loss.metrics["ratio/mean"], torch.ones(len(batch)))
    assert torch.equal(sum(loss.per_row.detach() for loss in losses), -batch.advantage)
    assert found.norm() > 0


def test_more_points_make_the_ratio_steadier(trainer: Trainer) -> None:
    """The variance of log rho, a mean over K independent points, is a K-th of one point's."""
    batch = sampled(trainer)
    move(trainer)
    many = batch[torch.zeros(800, dtype=torch.int64)]  # one sample, each time with noise of its own
    many = replace(many, seeds=torch.arange(800))
    spread = {}
    for k in (1, 3, 9):
        (loss, *_), _ = learned(trainer, FPO(points=k, limit=0.05), many)
        spread[k] = loss.metrics["ratio/mean"].log().var().item()
    assert spread[1] / spread[3] == pytest.approx(3, rel=COUNTED)
    assert spread[1] / spread[9] == pytest.approx(9, rel=COUNTED)


@pytest.mark.parametrize("limit", [3.0, 0.05], ids=["no gain is cut", "large gains are cut"])
def test_learning_point_by_point_gives_the_gradient_of_the_joint_loss(trainer: Trainer, limit: float) -> None:
    batch, ctx = sampled(trainer), trainer.context(0)
    move(trainer)
    objective = FPO(limit=limit, points=4, clip=0.02)
    losses, found = learned(trainer, objective, batch)
    points = draw_points(ctx, batch, batch.x0, objective.times, 4)

    def noise_errors() -> Tensor:
        answers = [trainer.policy.pipe.transformer(where.x, where.t) for where in points]
        return torch.stack([(1 - where.t) ** 2 * errors(v, where) for where, v in zip(points, answers, strict=True)])

    with torch.no_grad(), trainer.policy.using("behaviour"):
        old = noise_errors()
    gain = (old - noise_errors()).clamp(-limit, limit)
    ratio = gain.mean(dim=0).exp()
    joint = torch.maximum(-batch.advantage * ratio, -batch.advantage * ratio.clamp(0.98, 1.02))
    joint.sum().backward()
    expected = taken(trainer)
    assert len(torch.stack([where.t for where in points]).unique()) == 4 * len(batch)
    assert 0 < ((ratio - 1).abs() > 0.02).sum() < len(batch)
    assert bool((gain.abs() == limit).any()) == (limit < 1)
    torch.testing.assert_close(sum(loss.per_row.detach() for loss in losses), joint.detach(), rtol=SAME, atol=SAME)
    assert (found - expected).norm() <= SAME * expected.norm()


@pytest.mark.parametrize("kind", [DGPO, FPO])
def test_settings_that_cannot_be_are_refused(kind: type) -> None:
    for changes in ({"clip": 0.0}, {"points": 0}, {"kl": -1.0}):
        with pytest.raises(ConfigError, match="objective needs"):
            kind(**changes)
