"""Compare a plan's memory with torch's own tracker of FSDP2: published sizes, fake tensors, no GPU, one process.

    python examples/benchmarks/plan_shards.py flux_dev_grpo --shard 8 policy.call.height=256 policy.call.width=256

The process pretends to be the first of as many as asked for: collectives move nothing, and tensors have no contents.
The trained network is built from the sizes that ship (`configs/architectures`), spread as a run spreads it, and called
as its pipeline calls it, for one row. Tracked are a forward and a backward pass beside moments and gradients of earlier
ones. The optimiser's step is not: with tensors without contents, what DTensor works out shapes with is counted, too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import Variable
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves, tree_map_only

from alignment.config.load import load
from alignment.config.parallel import Division
from alignment.policy.networks.weights import Weights
from alignment.policy.policy import Policy
from alignment.preflight.plan.meter import AsOnGPU, backward
from alignment.preflight.plan.rehearsal import observe, rehearsed
from alignment.preflight.plan.spread import spread
from alignment.training.runtime.sharded import Sharded

PROMPT = " ".join(["word"] * 50)
HALF = torch.bfloat16
Call = tuple[tuple[Any, ...], dict[str, Any]]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--shard", type=int, default=8)
    args = parser.parse_args()
    run = load(args.config, args.overrides)
    policy, door = rehearsed(run)
    with called_with(policy.denoiser) as calls:
        observe(policy, door, PROMPT, mixed=False)
    start = time.perf_counter()
    plan, track = planned(policy, calls[0], args.shard), tracked(policy, calls[0], args.shard)
    found = {
        "config": args.config,
        "parameters": sum(p.numel() for p in policy.denoiser.parameters()),
        "shard": args.shard,
        "planned": plan,
        "tracked": track,
        "difference": {key: plan[key] / track[key] - 1 for key in ("held", "pass")},
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(found, indent=2))


@contextmanager
def called_with(network: nn.Module) -> Iterator[list[Call]]:
    """Note what a network is called with."""
    calls: list[Call] = []
    hook = network.register_forward_pre_hook(lambda _, args, named: calls.append((args, dict(named))), with_kwargs=True)
    yield calls
    hook.remove()


def planned(policy: Policy, call: Call, shard: int) -> dict[str, float]:
    """Return the plan's bytes, of what is held throughout and at the peak of a pass."""
    network, over = policy.denoiser, spread(policy, Division(shard, 1), stays=False)
    precision = None if policy.spec.autocast is None else HALF
    args, named = tree_map_only(Tensor, lambda z: z.to("meta"), call)
    weights = [*network.parameters(), *network.buffers()]
    cost, _ = backward(lambda: network(*args, **named), weights, policy.trainable.values(), precision)
    held = over.held + 3 * over.trained
    activations = cost.bytes - over.halved * cost.fixed
    gathered, leaving = over.learning
    parts = {"gathered weights": gathered, "gradients on their way": leaving, "activations": activations}
    return {"held": held, **parts, "pass": held + sum(parts.values())}


def tracked(policy: Policy, call: Call, shard: int) -> dict[str, float]:
    """Return the tracker's bytes, of the same."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=shard)
    spec, meta = policy.spec, policy.denoiser
    mesh = init_device_mesh("cpu", (shard,), mesh_dim_names=("shard",))
    layout = Sharded(mesh, HALF if spec.autocast else None, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = type(meta).from_config(meta.config).requires_grad_(False).eval()
        kept = vars(type(network)).get("_keep_in_fp32_modules") or ()
        for name, p in network.named_parameters():
            p.data = p.data.to(torch.float32 if any(k in name.split(".") for k in kept) else getattr(torch, spec.dtype))
        weights = Weights({"transformer": network}, spec, 0, layout=layout)
        trained = list(weights.trainable.values())
        optimizer = torch.optim.AdamW(trained, foreach=True)
        for p in trained:  # as in the middle of a run
            p.grad = torch.zeros_like(p)
            optimizer.state[p] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        args, named = tree_map_only(Tensor, lambda z: torch.empty(z.shape, dtype=z.dtype), call)
        tracker = FSDPMemTracker(network, optimizer)
        tracker.track_inputs((args, named))
        with tracker:
            held = total(tracker, "current")
            with torch.enable_grad(), AsOnGPU(HALF if spec.autocast else None, torch.device("cpu")):
                roots = tuple(z for z in tree_leaves(network(*args, **named)) if isinstance(z, Tensor))
                Variable._execution_engine.run_backward(  # pyright: ignore[reportPrivateUsage]
                    roots, tuple(map(torch.empty_like, roots)), False, False, (), allow_unreachable=True,
                    accumulate_grad=True,
                )  # fmt: skip
                del roots
            found = {"held": held, "pass": total(tracker, "peak")}
            parts = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    dist.destroy_process_group()
    return {**found, **{str(kind): float(size) for kind, size in parts.items() if size}}


def total(tracker: FSDPMemTracker, kind: str) -> float:
    """Return the tracker's bytes on the device, of now or of the peak so far."""
    return tracker.get_tracker_snapshot(kind)[torch.device("cpu")]["Total"]


if __name__ == "__main__":
    main()
