"""Each kernel is its torch reference: forward and backward, odd shapes, three dtypes, neighbours in memory or not.

On a CPU Triton interprets its kernels (tests/conftest.py says so before triton is imported); on a GPU it compiles them.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from alignment.objectives.kernels.actions import Actions, Ratios
from alignment.objectives.kernels.matching import matching_error, noised_pair
from alignment.objectives.kernels.surrogate import clipped_surrogate
from samplers import Step
from samplers.kernels.dispatch import choosing, fused
from samplers.kernels.gaussian import gaussian_sample, gaussian_step
from samplers.kernels.layout import MemoryLayout, in_pieces, layout_of
from samplers.paths.path import Path, RectifiedFlow, VarianceExploding, VariancePreserving

DEVICE = "cuda" if torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] == "0" else "cpu"
CLIP = 2e-2
# Relative: float32 sums in another order; half precision rounds what is handed back.
SAME = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", SAME, ids=str)

STATES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {  # of a state, and of its map
    "picture": ((3, 5, 7), (1, 5, 7)),
    "tokens": ((11, 6), (11, 1)),
    "clip": ((4, 2, 3, 5), (1, 2, 3, 5)),
    "frames first": ((3, 4, 2, 5), (3, 1, 2, 5)),
    "every number": ((3, 5), (3, 5)),
    "one position": ((2, 1, 1), (1, 1, 1)),
    "several blocks": ((16, 300), (1, 300)),
}
SHAPES = pytest.mark.parametrize("name", STATES)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def steps(rows: int) -> Step:
    """Return a step that differs from row to row."""
    a, b, std = (torch.rand(3, rows) + torch.tensor([[0.5], [-1.5], [0.2]])).to(DEVICE)
    return Step(a, b, std)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.dtype == expected.dtype
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


@DTYPES
@SHAPES
@pytest.mark.parametrize("shared", [True, False], ids=["one step", "a step a row"])
def test_gaussian_step(name: str, dtype: torch.dtype, shared: bool) -> None:
    state, positions = STATES[name]
    layout = layout_of(state, positions)
    assert layout is not None
    x, v, noise = randn(3, 3, *state, dtype=dtype)
    step = Step.of(0.9, -0.2, 0.3).to(x.device) if shared else steps(3)
    found, expected = [], []
    for results, kernels in ((found, "triton"), (expected, "torch")):
        with choosing(kernels):
            results += [*gaussian_step(x, v, noise, step, layout), gaussian_sample(x, v, noise, step, dtype)]
    for i in (0, 2):
        close(found[i], expected[i], SAME[dtype])
    # The density is that of the state as it was rounded, which may be the other neighbour of a number in between.
    for x_next, density, _ in (found, expected):
        assert density.shape == (3, torch.Size(positions).numel())
        close(density, layout.reduced(step.log_prob(x, v, x_next).flatten(1)), SAME[torch.float32])


def surrogate(
    v: Tensor, actions: Actions, advantage: Tensor, channels: str, kernels: str
) -> tuple[Tensor, Tensor, Ratios]:
    """Return the loss, the gradient of a sum that weighs its rows differently, and the ratios."""
    v = v.clone().requires_grad_()
    with choosing(kernels):
        loss, ratios = clipped_surrogate(v, actions, advantage, CLIP, channels)
    weights = torch.arange(1, len(v) + 1, device=v.device)
    (grad,) = torch.autograd.grad((loss * weights).sum(), v)
    return loss.detach(), grad, ratios


@DTYPES
@SHAPES
@pytest.mark.parametrize("channels", ["sum", "mean"])
@pytest.mark.parametrize("scalar", [False, True], ids=["map", "scalar"])
def test_clipped_surrogate(name: str, dtype: torch.dtype, channels: str, scalar: bool) -> None:
    state, positions = STATES[name]
    rows, count = 2, 3
    step = steps(rows)
    x, old = randn(2, rows, *state, dtype=dtype)
    x_next = (step.mean(x, old)[:, None] + 0.3 * randn(rows, count, *state)).to(dtype)
    advantage = randn(rows, count) if scalar else randn(rows, count, *positions)
    # A little further than the clip range for some, and less for others.
    v = (old.float() + 0.02 * randn(rows, *state)).to(dtype)
    actions = Actions(x, x_next, old, step)
    ours, theirs = (surrogate(v, actions, advantage, channels, kernels) for kernels in ("triton", "torch"))
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        close(found, expected, SAME[dtype])
    for field in ("mean", "largest", "smallest", "outside"):
        close(getattr(ours[2], field), getattr(theirs[2], field), SAME[torch.float32])


def test_the_first_ratio_is_exactly_one() -> None:
    state, positions = STATES["picture"]
    x, old, x_next = randn(2, *state), randn(2, *state), randn(2, 3, *state)
    for advantage in (randn(2, 3), randn(2, 3, *positions)):
        for kernels in ("torch", "triton"):
            _, _, ratios = surrogate(old, Actions(x, x_next, old, steps(2)), advantage, "sum", kernels)
            assert torch.equal(ratios.largest, torch.ones_like(ratios.largest))
            assert torch.equal(ratios.smallest, torch.ones_like(ratios.smallest))


def test_strides_do_not_matter() -> None:
    state, positions = STATES["picture"]
    x, old, v = (randn(state[2], 2, state[0], state[1]).permute(1, 2, 3, 0) for _ in range(3))
    x_next, advantage = randn(2, *state, 3).permute(0, 4, 1, 2, 3), randn(2, 3, *positions)
    actions = Actions(x, x_next, old, steps(2))
    ours, theirs = (surrogate(v, actions, advantage, "mean", kernels) for kernels in ("triton", "torch"))
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        close(found, expected, SAME[torch.float32])


PATHS: dict[str, Path] = {
    "flow": RectifiedFlow(),
    **{
        kind: VariancePreserving(torch.linspace(0.99, 0.01, 100), kind)
        for kind in ("epsilon", "v_prediction", "sample")
    },
    "preconditioned": VarianceExploding(0.002, 80.0, spread=0.5, sign=1),
}


@DTYPES
@pytest.mark.parametrize("prediction", PATHS)
def test_noised_pair(prediction: str, dtype: torch.dtype) -> None:
    x0, noise = randn(2, 3, 5, 7, 2, dtype=dtype)
    t = torch.tensor([0.1, 0.5, 0.93], device=x0.device)
    pairs = []
    for kernels in ("triton", "torch"):
        with choosing(kernels):
            pairs.append(noised_pair(PATHS[prediction], x0, noise, t))
    for found, expected in zip(*pairs, strict=True):
        close(found, expected.to(dtype), SAME[dtype])


@DTYPES
@pytest.mark.parametrize("size", [1, 7, 2048, 5000])
def test_matching_error(size: int, dtype: torch.dtype) -> None:
    v, wanted = randn(3, size, dtype=dtype), randn(3, size)
    found = []
    for kernels in ("triton", "torch"):
        at = v.clone().requires_grad_()
        with choosing(kernels):
            error = matching_error(at, wanted)
        (grad,) = torch.autograd.grad((error * torch.arange(1, 4, device=v.device)).sum(), at)
        found.append((error.detach(), grad))
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, SAME[dtype])


def test_layouts() -> None:
    assert layout_of((16, 21, 60, 104), (1, 21, 60, 104)) == MemoryLayout(
        1, 21 * 60 * 104, 16, False, 16 * 21 * 60 * 104
    )
    assert layout_of((13, 16, 60, 90), (13, 1, 60, 90)) == MemoryLayout(13, 5400, 16, False, 16 * 5400)
    assert layout_of((4096, 64), (4096, 1)) == MemoryLayout(1, 4096, 64, True, 4096 * 64)
    assert layout_of((16, 8, 4), (1, 8, 1)) is None  # channels on both sides of positions
    assert layout_of((1000, 4), (1, 4)) is None  # too many for registers
    assert in_pieces(1000).blocks * in_pieces(1000).block[0] * 256 >= 1000


def test_what_is_chosen_is_used() -> None:
    tensor = torch.zeros(1)
    assert not fused(tensor)  # auto, on a CPU
    with choosing("triton"):
        assert fused(tensor)
    with choosing("torch"):
        assert not fused(tensor)


@pytest.mark.parametrize("scalar", [False, True], ids=["map", "scalar"])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_a_ratio_too_large_for_float32_has_a_finite_gradient(kernels: str, scalar: bool) -> None:
    """The clip cuts it where credit is positive; where it is negative, the gradient pulls back."""
    state, positions = STATES["picture"]
    x, old = randn(2, *state), randn(2, *state)
    step = steps(2)
    v = old + 100.0
    x_next = step.mean(x, old + 150.0)[:, None]  # far likelier now than when it was drawn
    shape = (2, 1) if scalar else (2, 1, *positions)
    for credit, pulls in ((1.0, False), (0.0, False), (-1.0, True)):
        advantage = torch.full(shape, credit, device=v.device)
        loss, grad, ratios = surrogate(v, Actions(x, x_next, old, step), advantage, "sum", kernels)
        assert loss.isfinite().all()
        assert grad.isfinite().all()
        assert bool(grad.any()) == pulls
        assert ratios.largest.log().max().item() == pytest.approx(20, rel=SAME[torch.float32])


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_a_step_without_noise_has_no_ratio(kernels: str) -> None:
    state, _ = STATES["picture"]
    x, old = randn(2, *state), randn(2, *state)
    still = Step.of(0.9, -0.2, 0.0).to(x.device)
    with choosing(kernels), pytest.raises(ValueError, match="std 0 has no density"):
        clipped_surrogate(old, Actions(x, old[:, None], old, still), randn(2, 1), CLIP, "mean")
