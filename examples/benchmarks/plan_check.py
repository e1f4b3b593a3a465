"""Compare a plan's memory and time with a real step: a full-size SD3.5 medium with random weights, LoRA, on one GPU.

    python examples/benchmarks/plan_check.py --gpu h200 > plan_check.json

The pipeline is built from the sizes that ship (`configs/architectures`), filled with small random numbers and handed to
the trainer; nothing is downloaded. A step is rehearsed, then run, and both are printed with their ratio. The share of
peak that was reached is what `visalign plan --peak-fraction` wants.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alignment.config.load import load
from alignment.config.run import Run
from alignment.data.prompts import Prompts
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.prepare import load_policy, prepare
from alignment.preflight.plan import blueprint, plan
from alignment.preflight.plan.gpus import gpu
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime

PIPELINE = "stabilityai/stable-diffusion-3.5-medium"
STEPS = 3
CONFIG = """\
name: plan_check
steps: {steps}
policy:
  pipeline: {pipeline}
  call: {{height: {side}, width: {side}, num_inference_steps: 10, guidance_scale: 4.5}}
  lora: {{rank: 32, alpha: 64}}
  dtype: bfloat16
  autocast: bfloat16
  gradient_checkpointing: {checkpointing}
data: {{prompts: {prompts}}}
source:
  type: on_policy_steps
  prompts: 1
  group_size: {group}
  dynamics: {{type: flow_sde, a: 0.7}}
  window: {{type: fraction, fraction: 1.0}}
  reward: {{type: jpeg}}
objective: {{type: clipped_surrogate}}
batch: {{microbatch: {microbatch}}}
"""


def main() -> None:
    """Print one JSON object: planned, measured, ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--microbatch", type=int, default=4)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = _run(Path(folder), args)
        planned = plan.plan(run, plan.Setup(gpu(args.gpu), peak_fraction=1.0))
        measured = _measured(run)
    flops, seconds = sum(planned.flops.values()), measured["seconds"]
    phases = {name: sum(parts.values()) for name, parts in planned.memory.items() if name != "loading"}
    peak = max(phases.values())
    found = {
        "planned": {"flops": flops, "bytes": peak, "by_phase": phases},
        "measured": measured,
        "memory_ratio": peak / measured["bytes"],
        "peak_fraction": flops / seconds / planned.setup.gpu.half,
    }
    print(json.dumps(found, indent=2))


def _run(folder: Path, args: argparse.Namespace) -> Run:
    (folder / "prompts.txt").write_text("a red circle beside two blue squares\n", encoding="utf-8")
    text = CONFIG.format(
        steps=STEPS,
        pipeline=PIPELINE,
        prompts=folder / "prompts.txt",
        side=args.side,
        group=args.group,
        microbatch=args.microbatch,
        checkpointing=str(args.checkpointing).lower(),
    )
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return load(folder / "config.yaml")


def _measured(run: Run) -> dict[str, float]:
    """Return seconds of a step and the most bytes that torch allocated in one, the first step left out."""
    runtime = Runtime(run)
    policy = load_policy(run.policy, device=runtime.world.device, seed=0, pipe=_random_pipeline(run.policy))
    prepare(policy, ("a red circle beside two blue squares",))
    for name in run.copies:
        policy.weights.keep(name)
    runtime.attach(policy, run.optimizer)
    trainer = Trainer(run, policy, runtime, Prompts(("a red circle beside two blue squares",)))
    spent: list[float] = []
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()

    def after(step: int, experience: object, metrics: object) -> None:
        nonlocal start
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
        start = time.perf_counter()

    trainer.fit(0, after)
    runtime.close()
    return {"seconds": min(spent[1:]), "bytes": float(torch.cuda.max_memory_allocated())}


def _random_pipeline(spec: PolicySpec) -> Any:
    """Return the pipeline with random weights on the GPU; text encoders stay without, and answer zeros."""
    pipe = blueprint.draw(spec)
    device = torch.device("cuda")
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and not name.startswith("text_encoder"):
            vars(pipe)[name] = part.to_empty(device=device)
            for module in part.modules():
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
            for weight in [*part.parameters(), *part.buffers()]:
                if weight.is_floating_point():
                    weight.data.normal_(std=0.02)
    type(pipe).device = type(pipe)._execution_device = property(lambda self: device)
    return pipe


if __name__ == "__main__":
    main()
