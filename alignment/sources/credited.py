"""What every on-policy source does with its samples: score them, give credit, report metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_statistics import group_rows, group_spread, group_variance
from alignment.credit.advantages.parts import conflicts
from alignment.credit.structures.base import Sampled, Structure
from alignment.data.batches import Groups
from alignment.errors import ConfigError, NumericsError
from alignment.policy.latent_grid import latent_grid
from alignment.sources.scouting.selection import Selection
from reward_models.base import Media, RewardError, RewardModel, Rewards

MAX_UNSCORED = 0.2
"""Share of a step's samples that may lack a score before the run stops."""


PHASE = "visalign: "
"""What the names of phases begin with where torch's profiler sees them."""


class Stopwatch:
    """Seconds spent, by name; torch's profiler sees the same, as phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        start = time.perf_counter()
        with torch.profiler.record_function(f"{PHASE}{name}"):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def score(
    ctx: Context, reward: RewardModel, media: Media, prompts: tuple[str, ...], group: Tensor | None = None
) -> Rewards:
    """Return the scores of this process's samples, on the CPU.

    Args:
        ctx: Surroundings of the step.
        reward: What to score with.
        media: The samples.
        prompts: One text per sample.
        group: `[B]`, whole groups; None where samples have none, as in evaluation.

    Raises:
        NumericsError: If pixels are not finite; no scorer is asked about such.
        RewardError: If the scorer fails, or answers with another number of scores.
    """
    broken = int((~media.pixels.flatten(1).isfinite().all(dim=1)).sum())
    if broken and ctx.step == 0:
        raise NumericsError(
            f"{broken} of {len(media)} samples have pixels that are not finite before anything was trained: the "
            "pipeline's own output is not finite. Its weights hold NaN, or a network overflows in its dtype; check "
            "policy.pipeline, or compute in float32 (policy.dtype: float32, policy.autocast: null)"
        )
    if broken:
        raise NumericsError(
            f"{broken} of {len(media)} samples of step {ctx.step} have pixels that are not finite: the weights have "
            "diverged, or a network overflows in its dtype; lower optimizer.learning_rate, or compute in float32 "
            "(policy.dtype: float32, policy.autocast: null)"
        )
    return ctx.world.score(reward, media, prompts, group)


def join(rewards: list[Rewards]) -> Rewards:
    """Return the scores of several calls as one."""
    parts = {name: torch.cat([r.parts[name] for r in rewards]) for name in rewards[0].parts}
    return Rewards(torch.cat([r.value for r in rewards]), parts)


def assign(
    ctx: Context,
    advantage: Advantage,
    rewards: Rewards,
    group: Tensor,
    what: RewardModel,
    selection: Selection | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return this process's advantages `[B]` and the step's reward metrics, computed over all processes.

    Args:
        ctx: Surroundings of the step.
        advantage: How scores become credit.
        rewards: The scores of this process's samples.
        group: `[B]`, whole groups.
        what: What scored them.
        selection: What is known of samples that were chosen; None where they were not.

    Raises:
        RewardError: If too many samples have no score, or the first step's scores are all the same.
    """
    everywhere, groups = gathered(ctx, rewards), ctx.world.gather(group)
    refuse(ctx, everywhere.value, what)
    metrics = reward_metrics(everywhere, groups)
    if selection is None:
        credits = advantage(everywhere, groups)
    else:
        known = selection.everywhere(ctx.world.gather)
        credits = known.credit(advantage, everywhere, groups)
        metrics |= known.metrics(everywhere, groups)
    return credits[ctx.world.share(len(credits))], metrics


def gathered(ctx: Context, rewards: Rewards) -> Rewards:
    """Return the scores of all processes."""
    parts = {name: ctx.world.gather(part) for name, part in rewards.parts.items()}
    return Rewards(ctx.world.gather(rewards.value), parts)


def reward_metrics(rewards: Rewards, group: Tensor) -> dict[str, float]:
    """Return a step's reward metrics."""
    index, groups = group_rows(group)
    metrics = {
        "reward/mean": rewards.value.nanmean().item(),
        "reward/group_std": group_variance(rewards.value, index, groups, ddof=1).sqrt().mean().item(),
        "reward/zero_std_fraction": (group_spread(rewards.value, index, groups) == 0).float().mean().item(),
        "reward/unscored_fraction": rewards.value.isnan().float().mean().item(),
    }
    metrics |= {f"reward/{name}": part.nanmean().item() for name, part in rewards.parts.items()}
    return metrics | {f"conflict/{a}~{b}": r for (a, b), r in conflicts(rewards, group).items()}


def refuse(ctx: Context, value: Tensor, what: RewardModel) -> None:
    """Refuse a step's scores that nothing can be learned from.

    Raises:
        RewardError: If too many samples have no score, or the first step's scores are all the same.
    """
    unscored = value.isnan().float().mean().item()
    if unscored > MAX_UNSCORED:
        raise RewardError(
            f"{what} left {unscored:.0%} of the samples of step {ctx.step} without a score (NaN); up to "
            f"{MAX_UNSCORED:.0%} are left out of the update, more stop the run"
        )
    scored = value[~value.isnan()]
    if ctx.step == 0 and len(scored) > 1 and bool((scored == scored[0]).all()):
        raise RewardError(
            f"{what} gave all {len(scored)} samples of the first step the same score "
            f"{scored[0].item():g}: nothing can be learned from a constant reward"
        )


def spread(
    ctx: Context, structure: Structure, credits: Tensor, samples: Sampled
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return the credit of this process's samples laid over their latents, the maps, and their metrics.

    Args:
        ctx: Surroundings of the step.
        structure: What makes maps of samples.
        credits: `[B]`.
        samples: What they belong to.

    Returns:
        `[B, *map]`, which broadcasts against the latents; `[B, frames, height, width]`; metrics.

    Raises:
        PipelineError: If the latents are not a grid.
    """
    state = samples.x0.shape[1:]
    grid = latent_grid(ctx.policy.pipe, state, samples.media.pixels.shape)
    maps = ctx.world.allocator(structure)(samples, grid)
    laid = grid.lay(maps)
    metrics = {"structure/mean": ctx.world.gather(maps.flatten(1).mean(dim=1)).mean().item()}
    return credits.reshape(-1, *(1,) * len(state)) * laid, maps, metrics


def check_geometry(prompts: int, group_size: int, prompts_per_call: int | None) -> None:
    """Refuse a batch that credit cannot be computed on.

    Raises:
        ConfigError: With the arithmetic that does not work out.
    """
    if prompts < 1:
        raise ConfigError(f"prompts must be >= 1, got {prompts}")
    if group_size < 2:
        raise ConfigError(
            f"group_size must be >= 2, got {group_size}: a sample is compared with others of the same prompt, and "
            "a group of one has none"
        )
    if prompts_per_call is not None and (prompts_per_call < 1 or prompts % prompts_per_call):
        raise ConfigError(
            f"prompts_per_call must divide prompts: {prompts} / {prompts_per_call} leaves "
            f"{prompts % max(prompts_per_call, 1)} over"
        )


def sample_ids(groups: Groups, group_size: int) -> Tensor:
    """Return one integer per sample, `[P G]`, unique over the run: the key of its random streams."""
    return (groups.ids[:, None] * group_size + torch.arange(group_size)).flatten()


def repeat(texts: tuple[str, ...], times: int) -> tuple[str, ...]:
    """Return each text `times` times in a row."""
    return tuple(text for text in texts for _ in range(times))
