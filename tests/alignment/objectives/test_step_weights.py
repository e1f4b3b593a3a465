"""Weights of steps: "equal" makes all of them pull alike, whatever an objective's ratio is made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alignment.data.batches import Transitions
from alignment.objectives.policy_gradient.base import Stepwise
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.guarded_surrogate import GuardedSurrogate
from alignment.objectives.policy_gradient.spo import SPO
from samplers import Step
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.flow_sde import FlowSDE
from samplers.paths.grid import flow_grid
from tests.alignment.objectives.test_objectives import transitions

GRID = flow_grid(torch.linspace(1, 0, 11))
ROUNDING = 1e-4  # relative, of a gradient through float32 densities


def gradient(objective: Stepwise, step: Step, batch: Transitions, noise: Tensor) -> Tensor:
    """Return dL/dv of one step whose actions the noise drew."""
    x, v = batch.x[:, 0], batch.model_output[:, 0]
    taken = replace(
        batch,
        coefficients=step.coefficients.expand(len(batch), 1, 3),
        x_next=step.sample(x[:, None], v[:, None], noise)[:, None],
    )
    live = v.clone().requires_grad_()
    (found,) = torch.autograd.grad(objective.loss(taken, 0, live, None).per_row.sum(), live)
    return found


@pytest.mark.parametrize("dynamics", [FlowSDE(0.7), DanceSDE(0.3), DDIM()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("kind", [ClippedSurrogate, SPO, GuardedSurrogate])
def test_equal_steps_pull_alike(kind: type[Stepwise], dynamics: FlowSDE | DanceSDE | DDIM) -> None:
    """The same credit and noise give the same gradient at every step; without the weight densities are pulled apart."""
    batch = transitions(torch.randn(3, 4))
    noise = torch.randn(3, 4, 2, 3)
    steps = [dynamics.step(GRID, k, k + 1) for k in (1, 4, 8)]
    equal = [gradient(kind(weight="equal"), step, batch, noise) for step in steps]
    for k in (1, 2):
        torch.testing.assert_close(equal[k], equal[0], rtol=ROUNDING, atol=ROUNDING * equal[0].abs().max().item())
    if kind is not GuardedSurrogate and not isinstance(dynamics, DanceSDE):  # these are even already on an even grid
        true = [gradient(kind(), step, batch, noise).norm().item() for step in steps]
        assert max(true) > 1.5 * min(true)
