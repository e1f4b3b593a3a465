"""What a contestant of the race is, in a process and an environment of its own: it iterates and is measured when told.

The race writes a task, then words, to its standard input, a line each; it answers with a line of JSON each. Whatever a
library prints goes to the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import FluxPipeline

from examples.benchmarks.race.task import Task
from reward_models.base import Media
from reward_models.verifiers.shapes import Shapes


class Contestant(Protocol):
    """A trainer that was made for a task."""

    def iterate(self) -> float:
        """Sample, score and learn once; return the mean reward."""
        ...

    def network(self) -> Any:
        """Return the denoiser as it is trained now."""
        ...


def measure(task: Task, network: Any) -> float:
    """Return the share of held-out pictures in which all is right, made by the pipeline's own call and sampler."""
    pipe = FluxPipeline.from_pretrained(task.pipeline, transformer=network, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    right: list[float] = []
    prompts = Path(task.held_out).read_text().split("\n")
    scorer = Shapes(task.strict).load(device=torch.device("cpu"))
    for k, prompt in enumerate(filter(None, prompts)):
        noise = [torch.Generator().manual_seed(k * task.images + i) for i in range(task.images)]
        with torch.no_grad():
            (pixels,) = pipe(
                [prompt] * task.images,
                height=task.side,
                width=task.side,
                num_inference_steps=task.steps,
                max_sequence_length=task.tokens,
                generator=noise,
                output_type="pt",
                return_dict=False,
            )
        right += scorer(media=Media(pixels.float()[:, None]), prompts=[prompt] * task.images).parts["strict"].tolist()
    return sum(right) / len(right)


def serve(make: Callable[[Task], Contestant]) -> None:
    """Do what the race asks for, until it says no more."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(answer: dict[str, object]) -> None:
        said.write(json.dumps(answer) + "\n")
        said.flush()

    task = Task(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(task.threads)
    contestant = make(task)
    tell({"torch": torch.__version__})
    for word in map(str.strip, sys.stdin):
        if word == "iterate":
            begun, cpu = time.perf_counter(), time.process_time()
            reward = contestant.iterate()
            spent = time.perf_counter() - begun
            tell({"seconds": spent, "cpu": time.process_time() - cpu, "reward": reward})
        elif word == "measure":
            tell({"strict": measure(task, contestant.network())})
        else:
            raise SystemExit(f"got the word {word!r}, expected iterate or measure")
