"""What is particular to DGPO and FPO, which read samples or errors together: their formulas and special cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from alignment.errors import ConfigError
from alignment.objectives._noising import Point
from alignment.objectives.dgpo import DGPO
from alignment.objectives.fpo import FPO, noise_error
from samplers.path import RectifiedFlow, VariancePreserving
from tests.alignment.test_objectives import LATENT, gradient, point, samples

EXACT = 1e-9  # relative, of float64
FLAT = RectifiedFlow()


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


def test_more_points_make_the_ratio_steadier() -> None:
    """The variance of a mean of K independent gains is a K-th of one's."""
    gains = torch.randn(64, 4000, generator=torch.Generator().manual_seed(0))
    spread = [gains[:k].mean(dim=0).var().item() for k in (1, 8, 64)]
    assert spread[0] / spread[1] == pytest.approx(8, rel=0.1)
    assert spread[0] / spread[2] == pytest.approx(64, rel=0.1)


@pytest.mark.parametrize("kind", [DGPO, FPO])
def test_settings_that_cannot_be_are_refused(kind: type) -> None:
    for changes in ({"clip": 0.0}, {"points": 0}, {"kl": -1.0}):
        with pytest.raises(ConfigError, match="objective needs"):
            kind(**changes)
