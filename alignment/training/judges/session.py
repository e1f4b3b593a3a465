"""`visalign rewards train CONFIG`: a judge from preference pairs, start to end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from alignment.config import build, overlay, registry
from alignment.errors import ConfigError
from alignment.reports.run_folder import metric_line, write_atomically, write_json
from alignment.reports.statistics import Interval, interval
from alignment.reports.terminal import show
from alignment.training.judges.pairs import Pair, read_pairs
from alignment.training.judges.trainer import JudgeTrainer, JudgeTraining
from reward_models.base import RewardModel

RESOLVED, METRICS, SUMMARY, REWARD = "config.resolved.yaml", "metrics.jsonl", "summary.json", "reward.yaml"


def main(path: str, overrides: Sequence[str]) -> int:
    """Train as the config asks, report the result, and return the exit code."""
    registry.look_here()
    plan = build.build(JudgeTraining, overlay.override(overlay.read(Path(path)), overrides))
    summary = train(plan, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for when in ("base", "final"):
        if when in summary:
            show(f"{when:6}{_told(summary[when])}")
    show(f"the judge is in {plan.folder}; its {REWARD} is the `reward:` of a training")
    return 0


def train(plan: JudgeTraining, device: torch.device) -> dict[str, Interval]:
    """Train a judge, write its folder, and return its accuracy on the held-out pairs before and after.

    The folder holds the weights, `reward.yaml` (the `reward:` of a training that uses the judge), the resolved config,
    `metrics.jsonl` and `summary.json`.

    Raises:
        ConfigError: If the folder holds something already.
    """
    if plan.folder.exists() and any(plan.folder.iterdir()):
        raise ConfigError(f"{plan.folder} holds something already; give another name, or move it away")
    reasoned = bool(plan.reward.task.reasoning)
    pairs = read_pairs(plan.pairs, reasoned=reasoned)
    held_out = () if plan.held_out is None else read_pairs(plan.held_out, reasoned=reasoned)
    trainer, started = JudgeTrainer(plan, device), time.perf_counter()
    lines: list[bytes] = []
    found = {"base": measured(trainer, held_out)} if held_out else {}
    for step in range(plan.steps):
        metrics = trainer.step(step, pairs)
        if held_out and plan.every and (step + 1) % plan.every == 0:
            metrics["held_out_accuracy"] = measured(trainer, held_out).mean
        lines.append(metric_line(step, metrics))
        write_atomically(plan.folder / METRICS, b"".join(lines))
    trainer.save()
    if held_out:
        found["final"] = measured(trainer, held_out)
    write_atomically(plan.folder / RESOLVED, build.resolved(plan).encode())
    write_atomically(plan.folder / REWARD, build.resolved(plan.trained, RewardModel).encode())
    write_json(
        plan.folder / SUMMARY,
        {
            "seed": plan.seed,
            "steps": plan.steps,
            "pairs": len(pairs),
            "wall_seconds": time.perf_counter() - started,
            "accuracy": {when: asdict(value) for when, value in found.items()},
        },
    )
    return found


def measured(trainer: JudgeTrainer, pairs: Sequence[Pair]) -> Interval:
    """Return the share of pairs in which the judge prefers what people preferred, with its interval."""
    return interval(trainer.accuracy(pairs), [pair.prompt for pair in pairs])


def _told(found: Interval) -> str:
    return f"held-out pairs right: {found.mean:.1%} (95 %: {found.low:.1%} to {found.high:.1%}, {found.n} pairs)"
