"""What every forward-process objective does first: noise the clean samples again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from alignment.context import Context
from alignment.data.batches import B, Batch
from alignment.errors import ConfigError
from alignment.objectives.kernels.matching import noised_pair
from samplers.paths.times import Times


@dataclass(frozen=True)
class Point:
    """One noised copy of a batch.

    Attributes:
        t: `[n]` in [0, 1].
        x: `[n, *latent]`, x0 noised to t.
        target: `[n, *latent]`, what a perfect network returns.
    """

    t: Tensor
    x: Tensor
    target: Tensor


def draw_points(ctx: Context, batch: Batch, x0: Tensor, times: Times, count: int) -> list[Point]:
    """Return `count` noised copies of `x0`, one clean sample per row of the batch.

    Times and noise are keyed by row: they do not depend on how the batch is split, and both sides of a pair share
    theirs. If the pipeline takes one time per call (`policy.row_times` is false), all rows share the first row's.
    """
    points = []
    for k in range(count):
        t = _drawn(ctx, batch, times, k).to(x0.device)
        t = t if ctx.policy.row_times else t[:1].expand_as(t)
        noise = ctx.draw.normal("noise", batch.seeds, k, x0.shape[1:]).to(x0.device)
        points.append(Point(t, *noised_pair(ctx.policy.path, x0, noise, t)))
    return points


def _drawn(ctx: Context, batch: Batch, times: Times, k: int) -> Tensor:
    """Return the times of the k-th noised copy, `[n]` float32."""
    if times.distribution != "sampler":
        return times(ctx.draw.uniform("time", batch.seeds, k))
    try:
        return times.among(ctx.policy.times, ctx.draw.uniform("time", batch.seeds, 0), k)
    except ValueError as error:
        raise ConfigError(f"objective.times: {error}") from error


def noised_alike(ctx: Context, batch: B) -> B:
    """Return the batch with one random stream per group, so that `draw_points` noises its samples alike."""
    return replace(batch, seeds=ctx.draw.keys("noise of a group", batch.group))


def frozen_outputs(ctx: Context, batch: Batch, points: list[Point], name: str) -> dict[int, Tensor]:
    """Return the model output at each point under the frozen weights `name`, float32."""
    outputs: dict[int, Tensor] = {}
    with ctx.policy.using(name):
        ctx.policy.visit(batch, [(p.x, p.t) for p in points], lambda k, v: outputs.update({k: v.float()}), grad=False)
    return outputs


def error_change(model_output: Tensor, frozen: Tensor, target: Tensor) -> Tensor:
    """Return how much larger the error of one model output is than another's, `[n]`.

    mean |v - v*|^2 - mean |f - v*|^2 = mean (v - f)(v + f - 2 v*), which is exactly 0 where the two are equal.
    Subtracting two errors would leave their rounding, which grows with the errors and not with the change; objectives
    multiply it by thousands.

    Args:
        model_output: v, `[n, *latent]`, with graph.
        frozen: f, the other model output.
        target: v*, what a perfect network returns.
    """
    return ((model_output - frozen) * (model_output + frozen - 2 * target)).flatten(1).mean(dim=1)


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean square of each row, `[n]`."""
    return difference.square().flatten(1).mean(dim=1)
