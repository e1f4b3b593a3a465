"""How many rows a forward-backward pass takes: measured where `batch.microbatch` is auto."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from alignment.data.batches import Batch
from alignment.errors import ConfigError
from alignment.training.loop import Trainer, rows_per_unit
from reward_models.foreign import out_of_memory

AUTO = "auto"
NEAR = 1.05
"""Of sizes whose time per row is within this of the best, the smallest is taken: it leaves memory free."""
WORSE = 1.3
"""No larger sizes are tried behind one whose time per row is this many times the best."""
PASSES = 2
"""Of each size, the fastest of which counts, behind one to warm up."""


def settled(trainer: Trainer, known: object) -> Trainer:
    """Return a trainer whose microbatch is a number: its run's, the one that a checkpoint knows, or a measured one.

    Args:
        trainer: The run, loaded.
        known: What a checkpoint of this run was learned with; None where there is none.
    """
    batch = trainer.run.batch
    if batch.microbatch != AUTO:
        return trainer
    size = known if isinstance(known, int) else measured(trainer)
    return replace(trainer, run=replace(trainer.run, batch=replace(batch, microbatch=size)))


def measured(trainer: Trainer) -> int:
    """Return the number of rows with the least time per row, or few more of it, on all processes.

    The first step's experience is made for it. No weight is changed, and nothing is drawn that the run will draw again.

    Raises:
        ConfigError: If processes hold the networks together.
    """
    if trainer.runtime.world.in_step:
        raise ConfigError(
            "batch.microbatch: auto tries sizes until memory runs out, and processes that hold the networks together "
            "would wait for the one it ran out on; give a number"
        )
    batch = trainer.experience(trainer.context(0)).batch
    pace: dict[int, float] = {}
    for rows in _sizes(batch, rows_per_unit(trainer.run.objective, batch)):
        size = len(rows)
        pace[size] = max(trainer.runtime.world.each(_seconds(trainer, batch[rows]) / size))
        if pace[size] > WORSE * min(pace.values()):
            break
    best = min(pace.values())
    if math.isinf(best):
        raise ConfigError(
            "batch.microbatch: auto found no size that fits into memory; see docs/faq.md for what takes less"
        )
    return min(size for size, seconds in pace.items() if seconds <= NEAR * best)


def _sizes(batch: Batch, unit: int) -> Iterator[torch.Tensor]:
    """Yield rows of one chunk to learn from at once: a unit, twice as many, and so on up to all."""
    chunks, counts = batch.chunk.unique(return_counts=True)
    rows = (batch.chunk == chunks[counts.argmax()]).nonzero().flatten()
    size = unit
    while size < len(rows):
        yield rows[:size]
        size *= 2
    yield rows


def _seconds(trainer: Trainer, batch: Batch) -> float:
    """Return the seconds of one pass over `batch`; infinity if it takes more memory than there is."""
    device, found = trainer.policy.device, []
    try:
        rows = batch.to(device)
        for _ in range(PASSES + 1):
            begun = time.perf_counter()
            trainer.run.objective(trainer.context(0), rows, trainer.runtime.follow)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(time.perf_counter() - begun)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return math.inf
    finally:
        for parameter in trainer.policy.trainable.values():
            parameter.grad = None
    return min(found[1:])
