"""The checks that cross fields, made before anything is loaded: each gives a key, what is wrong and what to do."""

from __future__ import annotations

import itertools
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from alignment.config import parallel, refusals
from alignment.config.parallel import Problem
from alignment.config.places import misplaced, unwritable
from alignment.config.run import Run
from alignment.config.schedule import check_dynamics, check_noise, read_scheduler, sampled_apart
from alignment.errors import ConfigError
from alignment.policy.networks.spec import PolicySpec, not_a_pipeline
from reward_models.base import RewardError, require_reward_model
from samplers.errors import SamplingError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LONGEST_NAME = 200
"""Characters; file systems take 255 bytes, and a run that is moved aside gets a longer name."""

LARGEST_CALL = {"num_inference_steps": 10_000, "height": 2**15, "width": 2**15, "num_frames": 2**14}
"""What nobody means to exceed. Larger numbers are slips, and would take all memory before anything could be said."""
PIXELS_AT_MOST = 2**31
"""Of a sample, all frames together: a thousand frames of 1920 x 1080."""
FOLLOWING = ("reference", "behaviour", "ema")
"""The frozen copies that the loop keeps for whoever names them."""


def processes() -> int:
    """Return how many processes the launcher has started, as its environment reports it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(run: Run, world_size: int) -> None:
    """Refuse a run that cannot work on this machine with this many processes.

    Raises:
        ConfigError: The first problem found.
        EnvironmentProblem: If a tracker it reports to cannot be started.
    """
    found = itertools.chain(
        values(run),
        parallel.problems(run.parallel, run.policy, run.optimizer.needs_whole, world_size),
        _geometry(run, world_size),
        _files(run),
        rewards(run),
    )
    for key, message in found:
        raise ConfigError(f"{key}: {message}")
    from alignment.policy.call_arguments import checked_arguments
    from alignment.policy.networks.loading import declared_class

    check_scheduler(run, read_scheduler(run.policy.pipeline), run.policy.call.get("num_inference_steps"))
    if Path(run.policy.pipeline).is_dir() and (kind := declared_class(run.policy)) is not None:
        checked_arguments(kind, run.policy.call, "policy.call")
        checked_arguments(kind, run.evaluation.call, "evaluation.call")
        if run.source.scout is not None:
            checked_arguments(kind, run.source.scout.how.call, "source.scout.how.call")
    if run.output.report_to:  # whose libraries take seconds to import
        from alignment.reports.trackers import check_trackers

        check_trackers(run.output.report_to)


def check_scheduler(run: Run, scheduler: object, rounds: object) -> None:
    """Refuse dynamics that the pipeline's scheduler cannot have, and windows whose steps would have no noise.

    Args:
        run: The run.
        scheduler: The pipeline's own; None where it is not known yet.
        rounds: Denoising steps in a call; None where that is not known yet.

    Raises:
        ConfigError: Naming the key.
    """
    dynamics, window = run.source.dynamics, run.source.window
    if scheduler is None or dynamics is None:
        return
    try:
        check_dynamics(dynamics, scheduler)
        if window is not None and isinstance(rounds, int):
            choice = window.choose(rounds, 0, 0, torch.Generator())
            check_noise(dynamics, scheduler, rounds, choice.eligible or choice.trained)
    except SamplingError as error:
        raise ConfigError(f"source.dynamics: {error}") from error


def values(run: Run) -> Iterator[Problem]:
    """Yield what is wrong with the run whatever the machine; `config.load` adds file and line."""
    if not re.fullmatch(r"[\w.-]+", run.name) or run.name in (".", ".."):
        yield "name", f"got {run.name!r}; it names a folder: letters, digits, '-', '_' and '.' only"
    elif len(run.name) > LONGEST_NAME:
        yield "name", f"got {len(run.name)} characters; it names a folder: use at most {LONGEST_NAME}"
    yield from _numbers(run)
    yield from _policy(run.policy)
    yield from sampled_apart(run)
    yield from _call(run)
    yield from _copies(run)
    yield from _rows(run)
    yield from _rounds(run)
    yield from _credit(run)
    yield from refusals.problems(run)


def _policy(policy: PolicySpec) -> Iterator[Problem]:
    """Look at which weights are trained, in which precision, and at how fast clips are."""
    if policy.fps is not None and policy.fps <= 0:
        yield "policy.fps", f"got {policy.fps}, expected more than 0 frames per second, or null for the pipeline's own"
    if policy.lora is not None and policy.trainable is not None:
        yield (
            "policy.trainable",
            "it chooses among the denoiser's own weights, but policy.lora trains adapters; drop one",
        )
    if policy.lora is not None and policy.lora.alpha is not None and policy.lora.alpha <= 0:
        yield "policy.lora.alpha", f"got {policy.lora.alpha}, expected more than 0, or null for the rank"
    for i, pattern in enumerate(policy.trainable or ()):
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"policy.trainable.{i}", f"{pattern!r} is not a regular expression: {error}"
    if policy.autocast is not None and policy.dtype not in ("float32", policy.autocast):
        yield (
            "policy.dtype",
            f"{policy.dtype} weights do not go with policy.autocast {policy.autocast}: the two half precisions would "
            f"meet in one product; store {policy.autocast} or float32, or set policy.autocast=null",
        )
    elif policy.dtype != "float32" and policy.lora is None and policy.autocast is None:
        yield (
            "policy.dtype",
            f"without policy.lora the trained weights are float32, and would meet inputs of {policy.dtype}; "
            "set policy.autocast=bfloat16, or store float32",
        )


def call_sizes(call: Mapping[str, object], key: str) -> Iterator[Problem]:
    """Yield what is wrong with the numbers of a call that count pixels, frames or steps; null is the pipeline's own."""
    counted = 1
    for name, most in LARGEST_CALL.items():
        size = call.get(name)
        if name in call and (size is not None or name == "num_inference_steps"):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                yield f"{key}.{name}", f"got {size!r}, expected a whole number of at least 1"
            elif size > most:
                yield f"{key}.{name}", f"got {size}, expected at most {most}"
            elif name != "num_inference_steps":
                counted *= size
    if counted > PIXELS_AT_MOST:
        yield (
            key,
            f"{counted:,} pixels per sample, expected at most {PIXELS_AT_MOST:,}: lower height, width or num_frames",
        )


def _call(run: Run) -> Iterator[Problem]:
    yield from call_sizes(run.policy.call, "policy.call")
    yield from call_sizes(run.evaluation.call, "evaluation.call")


def _rounds(run: Run) -> Iterator[Problem]:
    rounds = run.policy.call.get("num_inference_steps")
    if isinstance(rounds, int) and rounds > 0:
        for key, part in {"source": run.source, "objective": run.objective}.items():
            try:
                part.check_rounds(rounds)
            except ConfigError as error:
                yield key, f"with policy.call.num_inference_steps {rounds}: {error}"


def _numbers(run: Run) -> Iterator[Problem]:
    optimizer, evaluation = run.optimizer, run.evaluation
    at_least: dict[str, tuple[float, float]] = {
        "steps": (run.steps, 1),
        "threads": (1 if run.threads is None else run.threads, 1),
        "timeout": (run.timeout, 1),
        "policy.lora.rank": (1 if run.policy.lora is None else run.policy.lora.usual_rank, 1),
        "batch.updates": (run.batch.updates, 1),
        "batch.microbatch": (run.batch.rows, 1),
        "source.prompts": (run.source.prompts, 1),
        "optimizer.warmup": (optimizer.warmup, 0),
        "optimizer.weight_decay": (optimizer.weight_decay, 0),
        "optimizer.final": (optimizer.final, 0),
        "evaluation.images_per_prompt": (evaluation.images_per_prompt, 1),
        "evaluation.curve_images_per_prompt": (evaluation.curve_images_per_prompt, 1),
        "evaluation.batch_size": (evaluation.batch_size, 1),
        "evaluation.every": (evaluation.every, 0),
        "evaluation.grid": (evaluation.grid, 1),
        "snapshots.behaviour_rate": (run.snapshots.behaviour_rate, 0),
        "snapshots.every": (run.snapshots.every, 1),
        "output.save_every": (run.output.save_every, 0),
        "output.keep": (run.output.keep, 1),
    }
    for key, (got, least) in at_least.items():
        if got < least:
            yield key, f"got {got}, expected at least {least}"
    at_most = {"steps": 10**9, "threads": 4096, "timeout": 10**6, "policy.lora.rank": 4096, "batch.microbatch": 10**9}
    for key, most in at_most.items():
        if at_least[key][0] > most:
            yield key, f"got {at_least[key][0]}, expected at most {most}"
    above_zero = {
        "learning_rate": optimizer.learning_rate,
        "epsilon": 1 if optimizer.epsilon is None else optimizer.epsilon,
        "max_grad_norm": optimizer.max_grad_norm,
    }
    for key, got in above_zero.items():
        if got <= 0:
            yield f"optimizer.{key}", f"got {got}, expected more than 0"
    decays = {"snapshots.ema": run.snapshots.ema, "snapshots.behaviour": run.snapshots.behaviour}
    decays |= {f"optimizer.betas.{i}": beta for i, beta in enumerate(optimizer.betas or ())}
    decays |= {} if optimizer.momentum is None else {"optimizer.momentum": optimizer.momentum}
    for key, decay in decays.items():
        if not 0 <= decay < 1:
            yield key, f"got {decay}, expected a number from 0 to below 1"


def _copies(run: Run) -> Iterator[Problem]:
    """Check that copies which are read are kept, and that settings of the behaviour copy have an effect."""
    if strange := set(run.objective.snapshots) - {*FOLLOWING, *run.source.snapshots}:
        yield (
            "objective",
            f"{type(run.objective).__name__} compares with the copy {', '.join(sorted(strange))}, which source "
            f"{type(run.source).__name__} does not keep; choose one that does (semi_policy keeps the opponent)",
        )
    used = {*run.objective.snapshots, *run.source.snapshots}
    given = {"every": run.snapshots.every != 1, "above": bool(run.snapshots.above)}
    for key in (key for key, is_given in given.items() if is_given and "behaviour" not in used):
        yield (
            f"snapshots.{key}",
            "it sets when the behaviour copy is refreshed, but nothing in this run reads that copy; set "
            "objective.anchor or source.weights to behaviour, or leave it out",
        )


def _rows(run: Run) -> Iterator[Problem]:
    """Look at the window with the pipeline's own number of steps, and at how the rows of a step become updates."""
    rounds = run.policy.call.get("num_inference_steps")
    try:
        shape = run.source.shape(rounds if isinstance(rounds, int) and rounds > 0 else None)
    except ValueError as error:
        yield "source.window", f"with policy.call.num_inference_steps {rounds}: {error}"
        return
    rows, what = shape.rows, "rows"
    if run.objective.whole_groups:
        rows, what, group = shape.groups, "groups", shape.rows_per_group
        if group == 1:
            yield (
                "source.rows_per_group",
                f"got 1, but {type(run.objective).__name__} compares the samples of a group, and a group of one has "
                "none to compare; use at least 2",
            )
            return
        if run.batch.microbatch != "auto" and run.batch.rows < group:
            yield (
                "batch.microbatch",
                f"got {run.batch.microbatch}, but {type(run.objective).__name__} compares the {group} samples of a "
                f"group, which have to be in one microbatch; use at least {group}",
            )
    updates = run.batch.updates
    if updates > 0 and rows % updates:
        each, over = divmod(rows, updates)
        yield (
            "batch.updates",
            f"{rows} {what} per step do not divide into {updates}: {rows} = {updates} x {each} + {over}",
        )


def _credit(run: Run) -> Iterator[Problem]:
    """Look at whether the reward has what is asked of it: a gradient, parts by name."""
    reward = run.source.reward
    if reward is None:
        return
    known = reward.part_names()
    if run.objective.differentiates and not (reward.differentiable and reward.scope == "sample"):
        lacks = "compares the samples of a group" if reward.differentiable else "gives it none that reaches the pixels"
        yield (
            "source.reward",
            f"{type(run.objective).__name__} climbs the gradient of the reward of each sample, but {reward} {lacks}; "
            "choose a differentiable reward (docs/rewards.md), or an objective that needs no gradient of it",
        )
    advantage = run.source.advantage
    if advantage is None or known is None:
        return
    for part in advantage.reads:
        if part.split("/")[0] not in known:
            yield (
                "source.advantage",
                f"{type(advantage).__name__} reads the part {part!r} of the reward, but "
                f"{type(reward).__name__} has {', '.join(known) or 'no parts'}",
            )


def _geometry(run: Run, world_size: int) -> Iterator[Problem]:
    division = parallel.divide(parallel.as_launched(run.parallel, os.environ), world_size)
    prompts, size = run.source.prompts, division.teams
    whose = f"{size} processes" if division.context == 1 else f"{size} teams of {division.context} processes"
    each, over = divmod(prompts, size)
    if over:
        near = " or ".join(str(n * size) for n in (each, each + 1) if n)
        yield (
            "source.prompts",
            f"{prompts} prompts per step do not divide over {whose}: {prompts} = {size} x {each} + {over}; use {near}",
        )
    shape = run.source.shape(None)
    if not over and shape.groups % size:
        yield (
            "source.prompts",
            f"the {prompts} prompts of a step are {shape.groups} groups to compare within, which do not divide over "
            f"{whose}; use a multiple of {size * prompts // shape.groups}",
        )
    calls = shape.calls
    at_once = prompts // calls if calls else 1
    if each % at_once and at_once % each:
        yield (
            "source.prompts_per_call",
            f"{at_once} prompts per pipeline call do not divide the {each} prompts of each of {whose}, "
            f"nor the other way round: {each} = {at_once} x {each // at_once} + {each % at_once}",
        )


def _files(run: Run) -> Iterator[Problem]:
    for key, name in {"data.prompts": run.data.prompts, "evaluation.prompts": run.evaluation.prompts}.items():
        if name is not None and not Path(name).exists():
            yield key, f"there is no file {name} (paths are relative to the current folder, {Path.cwd()})"
    yield from _pipeline(run.policy.pipeline)
    yield from misplaced(run.policy)
    for key, folder in {"output.folder": Path(run.output.folder, run.name), **_caches(run)}.items():
        if problem := unwritable(folder):
            yield key, problem


def _caches(run: Run) -> Mapping[str, Path]:
    cache = run.policy.embedding_cache
    return {} if cache is None else {"policy.embedding_cache": Path(cache)}


def rewards(run: Run) -> Iterator[Problem]:
    """Yield what rewards refuse of themselves, such as code that is not there, and evaluations that lack one."""
    for key, reward in {"source.reward": run.source.reward, "evaluation.reward": run.evaluation.reward}.items():
        if reward is not None:
            try:
                require_reward_model(reward)
                reward.check(())
            except RewardError as error:
                yield key, str(error)
    judge = run.measure
    if run.evaluation.prompts is not None and judge is None:
        yield (
            "evaluation.reward",
            f"{type(run.source).__name__} has no reward of its own, so there is nothing to measure on "
            "evaluation.prompts; give a reward, or set evaluation.prompts=null",
        )
    elif run.evaluation.prompts is not None and judge is not None and judge.scope == "group":
        yield (
            "evaluation.reward",
            f"{judge} compares the samples of a group with each other, so that scores before and after "
            "cannot be compared; give a reward that scores a sample by itself, or set evaluation.prompts=null",
        )


def _pipeline(name: str) -> Iterator[Problem]:
    path = Path(name)
    if path.is_dir():
        if (reason := not_a_pipeline(path)) is not None:
            yield "policy.pipeline", reason
    elif path.exists():
        yield "policy.pipeline", f"{name} is a file; expected a folder in diffusers layout, or a hub id"
    elif not HUB_ID.fullmatch(name) or path.parent.is_dir():
        # `assets/tiny` has the shape of a hub id too, but a folder `assets` says what was meant.
        yield "policy.pipeline", f"there is no folder {name}, and it is not a hub id (owner/name)"


def describe(run: Run, world_size: int) -> str:
    """Describe in a paragraph what the run would do."""
    policy, source, evaluation = run.policy, run.source, run.evaluation
    shape = source.shape(None)
    samples = f" x {shape.group_size} samples = {shape.groups * shape.group_size} pictures or clips"
    if source.reward is None:
        given = f"{type(source).__name__} takes {source.prompts} records ({', '.join(source.media)}) on"
        scored = ""
    else:
        given = f"{type(source).__name__} makes {source.prompts} prompts{samples} on"
        scored = f"{type(source.reward).__name__} scores them, "
    sentences = [
        f"This run, {run.name}, would train {policy.trains} for {run.steps} steps.",
        f"In each, {given} {world_size} process{'es' if world_size > 1 else ''}, {scored}and "
        f"{type(run.objective).__name__} learns from them in {run.batch.updates} "
        f"update{'s' if run.batch.updates > 1 else ''}, at most {run.batch.microbatch} rows in a backward pass.",
        f"Frozen copies of the trained weights: {', '.join(run.copies) or 'none'}.",
        f"Held-out prompts: {evaluation.prompts}, {evaluation.images_per_prompt} pictures each, before and after."
        if evaluation.prompts
        else "No prompts are held out, so nothing is evaluated.",
        f"Results would go to {Path(run.output.folder) / run.name}. Nothing was loaded or written now.",
    ]
    return textwrap.fill(" ".join(sentences), width=110, break_long_words=False, break_on_hyphens=False)
