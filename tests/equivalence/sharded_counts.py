"""Take one step on the processes that a launcher started, and write what each holds; test_sharded_plan.py uses it.

Usage: torchrun --nproc_per_node N sharded_counts.py OUTPUT.json "CONFIG KEY=VALUE ..." ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor

from alignment.config.load import checked
from alignment.training import setup
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime


def held(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors that are here."""
    return sum((z.to_local() if isinstance(z, DTensor) else z).nbytes for z in tensors)


def counts(trainer: Trainer) -> dict[str, int]:
    """Return the bytes here of everything that is as large as the weights, after a step."""
    policy, found = trainer.policy, {}
    moments = trainer.runtime.optimizer.register_step_pre_hook(
        lambda *_: found.update(gradients=held(p.grad for p in policy.trainable.values() if p.grad is not None))
    )
    trainer.fit(0, lambda *_: None)
    moments.remove()
    state = trainer.runtime.optimizer.state.values()
    return {
        **found,
        "transformer weights": held(p for network in policy.experts.values() for p in network.parameters()),
        "optimizer": held(z for kept in state for name, z in kept.items() if name != "step"),
        "frozen copies": held(z for copy in policy.snapshots.values() for z in copy.values()),
    }


if __name__ == "__main__":
    everyone = []
    for line in sys.argv[2:]:
        config, *overrides = line.split()
        run = checked(config, overrides)
        runtime = Runtime(run)
        everyone.append(runtime.world.everyone(counts(setup.load(run, runtime))))
    if runtime.main:
        Path(sys.argv[1]).write_text(json.dumps(everyone), encoding="utf-8")
    runtime.close()
