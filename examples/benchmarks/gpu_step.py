"""Steps of full-size models with random weights on one GPU: time by phase, memory beside the plan's, and first ratios.

    python -m examples.benchmarks.gpu_step "SD3.5 medium, LoRA"

The pipeline is built from the sizes that ship (`configs/architectures`), filled with small random numbers and handed to
the trainer; nothing is downloaded. A step is rehearsed, then run, and both are printed as one JSON object. On a CPU it
needs a case of a small pipeline; `CASES` are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn

from alignment.config.load import load
from alignment.config.run import Run
from alignment.data.prompts import Prompts
from alignment.errors import VisalignError
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.prepare import load_policy, prepare
from alignment.preflight.plan import blueprint
from alignment.preflight.plan.gpus import product
from alignment.preflight.plan.plan import Setup, plan
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime

MODULE = "examples.benchmarks.gpu_step"
STEPS = 3
PROMPT = "a red circle beside two blue squares"
FIRST_ERROR = "ratio/first_error_max"
PHASES = ("rollout", "reward", "update", "total")


@dataclass(frozen=True)
class Case:
    """A model and what is trained of it.

    Attributes:
        pipeline: Name of sizes that ship, or a folder.
        call: Arguments of the pipeline.
        lora: Whether adapters are trained; else all weights are.
        group: Samples of the one prompt, sampled in one call.
        rows: Rows of a microbatch; the first ratio is also measured at those that are smaller.
        policy: Further settings of the policy.
        device: "auto" or "cpu".
    """

    pipeline: str
    call: Mapping[str, object]
    lora: bool = True
    group: int = 4
    rows: Sequence[int] = (1, 2, 4)
    policy: Mapping[str, object] = field(default_factory=dict)
    device: str = "auto"

    def run(self, folder: Path, rows: int) -> Run:
        """Return its run, with microbatches of `rows`."""
        (folder / "prompts.txt").write_text(f"{PROMPT}\n", encoding="utf-8")
        half: dict[str, object] = {"dtype": "bfloat16" if self.lora else "float32", "autocast": "bfloat16"}
        adapters = {"lora": {"rank": 32, "alpha": 64}} if self.lora else {"lora": None}
        policy = {"pipeline": self.pipeline, "call": dict(self.call), **half, **adapters, **self.policy}
        config = {
            "name": "gpu_step",
            "steps": STEPS,
            "device": self.device,
            "policy": {**policy, "check_latents": False},
            "data": {"prompts": str(folder / "prompts.txt")},
            "source": {
                "type": "on_policy_steps",
                "prompts": 1,
                "group_size": self.group,
                "dynamics": {"type": "flow_sde", "a": 0.7},
                "window": {"type": "fraction", "fraction": 0.5},
                "reward": {"type": "function", "call": f"{MODULE}:by_row"},
            },
            "objective": {"type": "clipped_surrogate"},
            "batch": {"microbatch": rows},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return load(folder / "config.yaml")


SQUARE = {"height": 1024, "width": 1024, "num_inference_steps": 10}
CLIP = {"height": 480, "width": 832, "num_frames": 33, "num_inference_steps": 8, "guidance_scale": 5.0}
SD35, FLUX = "stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
RECOMPUTED = {"gradient_checkpointing": True}
CASES = {
    "SD3.5 medium, LoRA": Case(SD35, {**SQUARE, "guidance_scale": 4.5}),
    "SD3.5 medium, all weights": Case(SD35, {**SQUARE, "guidance_scale": 4.5}, lora=False),
    "FLUX.1, LoRA": Case(FLUX, {**SQUARE, "guidance_scale": 3.5}, policy=RECOMPUTED),
    "Wan 2.1 1.3B, LoRA": Case(WAN, CLIP, group=2, rows=(1, 2), policy=RECOMPUTED),
    "Wan 2.1 1.3B, all weights": Case(WAN, CLIP, lora=False, group=2, rows=(1, 2), policy=RECOMPUTED),
}
"""All weights of FLUX.1 take 192 GB with gradients and moments in float32: more than one GPU has."""
BACKENDS = ("native", "_native_flash", "_native_cudnn", "_native_efficient")
"""Attention of torch's own, by diffusers' names; what a machine has not is left out, with the reason."""


def by_row(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward: brightness, and more for later rows, since pictures of random weights may be alike."""
    return pixels.mean((1, 2, 3, 4)) + torch.arange(len(pixels), device=pixels.device)


def measure(case: Case, compiler: str = "inductor") -> dict[str, object]:
    """Return what a case comes to: planned, measured, and first ratios by rows, attention and with compiled blocks."""
    with tempfile.TemporaryDirectory() as folder:
        run = case.run(Path(folder), max(case.rows))
        trainer = _trainer(run)
        found: dict[str, object] = {"measured": _steps(trainer)} | _planned(run)
        found["first ratio by rows"] = {
            str(rows): _steps(trainer, rows=rows, steps=1)[FIRST_ERROR] for rows in case.rows
        }
        found["by attention"] = {name: _with_attention(trainer, name) for name in BACKENDS}
        found["compiled"] = _compiled(trainer, compiler)
        trainer.runtime.close()
    seconds = found["measured"]["seconds"]["total"]  # type: ignore[index]  # a mapping of them
    if "planned" in found:
        peak = found["planned"]["peak FLOP/s"]  # type: ignore[index]
        found["mfu"] = found["planned"]["flops"] / seconds / peak  # type: ignore[index]
    return found


def _planned(run: Run) -> dict[str, object]:
    kind = product(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if kind is None:
        return {}
    made = plan(run, Setup(kind, peak_fraction=1.0))
    phases = {name: sum(parts.values()) for name, parts in made.memory.items() if name != "loading"}
    numbers = {"flops": sum(made.flops.values()), "bytes": max(phases.values()), "peak FLOP/s": kind.half}
    return {"planned": {**numbers, "by phase": phases}}


def _trainer(run: Run) -> Trainer:
    runtime = Runtime(run)
    pipe = _random_pipeline(run.policy, runtime.world.device)
    policy = load_policy(run.policy, device=runtime.world.device, seed=0, pipe=pipe)
    prepare(policy, (PROMPT,))
    for name in run.copies:
        policy.weights.keep(name)
    runtime.attach(policy, run.optimizer)
    return Trainer(run, policy, runtime, Prompts((PROMPT,)))


def _steps(trainer: Trainer, rows: int | None = None, steps: int = STEPS) -> dict[str, Any]:
    """Return medians of seconds by phase, the first step left out, most bytes allocated, and the worst first ratio."""
    batch = trainer.run.batch if rows is None else replace(trainer.run.batch, microbatch=rows)
    trainer = replace(trainer, run=replace(trainer.run, batch=batch, steps=steps))
    on_gpu = trainer.policy.device.type == "cuda"
    lines: list[dict[str, float]] = []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(0, lambda step, experience, metrics: lines.append(metrics))
    settled = lines[1:] or lines
    return {
        "seconds": {name: statistics.median(line[f"seconds/{name}"] for line in settled) for name in PHASES},
        "bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        FIRST_ERROR: max(line[FIRST_ERROR] for line in lines),
    }


def _with_attention(trainer: Trainer, name: str) -> object:
    """Return seconds and the first ratio with one kind of attention, or why it cannot be had."""
    try:
        with attention_backend(name):
            return _steps(trainer)
    except (VisalignError, ValueError, ImportError) as error:  # ours for what the pipeline raised
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def _compiled(trainer: Trainer, compiler: str) -> object:
    """Return seconds and the first ratio with compiled blocks, and what the first step took."""
    network = trainer.policy.denoiser
    if not type(network)._repeated_blocks:
        return f"{type(network).__name__} names no repeated blocks"
    network.compile_repeated_blocks(backend=compiler)
    start = time.perf_counter()
    _steps(trainer, steps=1)
    return {"seconds of the first step": time.perf_counter() - start, **_steps(trainer)}


def _random_pipeline(spec: PolicySpec, device: torch.device) -> Any:
    """Return the pipeline with random weights on `device`; text encoders stay without, and answer zeros."""
    pipe = blueprint.draw(spec)
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


def main() -> None:
    """Print what a case comes to, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    print(json.dumps(measure(CASES[parser.parse_args().case]), indent=1))


if __name__ == "__main__":
    main()
