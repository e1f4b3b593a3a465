"""This project in the race: `python -m examples.benchmarks.race.ours [key=value ...]`, told its task by `run`.

Without further words it does equal work: each sample from noise of its own, as many rows in a call, no shared prefix.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.config.load import load as load_run
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from examples.benchmarks.race.contestant import serve
from examples.benchmarks.race.task import Task

RECIPE = "quickstart_dancegrpo"
MANY = 100_000
"""Iterations that a race never comes to: the learning rate stays what it is."""


def words(task: Task) -> list[str]:
    """Return the task as overrides of a recipe."""
    call = f"{{height: {task.side}, width: {task.side}, num_inference_steps: {task.steps}"
    return [
        f"policy.pipeline={task.pipeline}",
        f"policy.call={call}, max_sequence_length: {task.tokens}}}",
        f"policy.lora={{rank: {task.rank}, alpha: {task.rank}, targets: [{', '.join(task.targets)}]}}",
        "policy.autocast=null",
        f"data.prompts={task.learned}",
        "evaluation.prompts=null",
        f"source.prompts={task.prompts}",
        f"source.group_size={task.group}",
        f"source.prompts_per_call={max(1, task.rows // task.group)}",
        f"source.dynamics={{type: flow_sde, a: {task.noise}}}",
        f"source.window={{type: random, size: {task.window}}}",
        f"source.reward={{type: shapes, strict: {task.strict}}}",
        "source.shared_noise=false",
        "source.share_prefix=false",
        "source.one_window=true",
        f"objective={{type: clipped_surrogate, clip: {task.clip}}}",
        f"optimizer={{learning_rate: {task.learning_rate}}}",
        f"batch={{updates: {task.updates}, microbatch: {task.rows}}}",
        f"threads={task.threads}",
        f"seed={task.seed}",
        f"steps={MANY}",
        "device=cpu",
    ]


@dataclass
class Ours:
    """A trainer, and how many steps it has taken."""

    trainer: Trainer
    done: int = field(default=0)

    @classmethod
    def of(cls, task: Task, more: Sequence[str]) -> Ours:
        """Return the trainer of a task."""
        run = load_run(RECIPE, [*words(task), *more])
        return cls(load(run, Runtime(run)))

    def iterate(self) -> float:
        """Take a step."""
        ctx = self.trainer.context(self.done)
        experience = self.trainer.experience(ctx)
        self.trainer.learn(ctx, experience.batch)
        self.trainer.runtime.metrics()
        self.done += 1
        return experience.metrics["reward/mean"]

    def network(self) -> Any:
        """Return the denoiser."""
        return self.trainer.policy.denoiser


if __name__ == "__main__":
    serve(lambda task: Ours.of(task, sys.argv[1:]))
