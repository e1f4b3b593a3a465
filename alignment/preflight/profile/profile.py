"""A few steps of a run under torch's profiler: its trace, and a table that says where they went."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from alignment.config import checks
from alignment.config.run import Run
from alignment.errors import ConfigError
from alignment.preflight.profile.phases import Phase, Span, by_phase
from alignment.preflight.scored import load_scored
from alignment.reports.console import Console
from alignment.reports.terminal import show
from alignment.sources.credited import PHASE
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load

OPERATORS = 6
"""Rows of the table per phase; JSON has them all."""
TRACE = "trace.json"
MICRO = 1e-6
ADVICE = {
    "rollout": "fewer denoising steps, source.tail or a window that branches, policy.lora.merge, "
    "policy.compile: blocks, policy.cache for clean samples, source.scout where a step is dear",
    "update": "batch.microbatch: auto, policy.gradient_checkpointing: false where memory allows, fewer noised copies "
    "or trained steps, source.keep",
    "reward": "source.overlap with a reward that is served elsewhere, or a faster one",
    "scoring": "nothing, while samples are made beside it; else a faster reward",
    "scout": "fewer source.scout.candidates, or cheaper ones",
    "structure": "a smaller backbone",
}
"""What makes a phase cheaper."""


def main(path: str, overrides: Sequence[str], steps: int, *, as_json: bool = False) -> int:
    """Profile steps of a config's run, write the trace and print where the time went; no weight is saved.

    Args:
        path: Config file.
        overrides: `key=value` words laid over it.
        steps: How many, behind one that warms up.
        as_json: Print one JSON object in place of the table.

    Raises:
        VisalignError: If the run cannot be loaded, as training would not.
        ConfigError: If several processes were launched, or no step is asked for.
    """
    if steps < 1:
        raise ConfigError(f"--count: got {steps}, expected at least 1")
    run = load_scored(path, overrides, "a profile")
    if (processes := checks.processes()) > 1:
        raise ConfigError(f"visalign profile looks at one process, and {processes} were launched; start it by itself")
    checks.check(run, 1)
    folder = Path(run.output.folder) / f"{run.name}.profile"
    found = profiled(run, steps, folder)
    if as_json:
        show(json.dumps(as_dict(found, steps, folder), indent=2))
    else:
        _print(found, steps, folder)
    return 0


def profiled(run: Run, steps: int, folder: Path) -> Mapping[str, Phase]:
    """Return where the time of so many steps of a run went, and write torch's trace into `folder`."""
    runtime = Runtime(run)
    try:
        trainer = load(run, runtime)
        _step(trainer, 0)
        cuda = [ProfilerActivity.CUDA] if runtime.world.device.type == "cuda" else []
        with profile(activities=[ProfilerActivity.CPU, *cuda]) as seen:
            for step in range(1, steps + 1):
                _step(trainer, step)
        folder.mkdir(parents=True, exist_ok=True)
        seen.export_chrome_trace(str(folder / TRACE))
        return by_phase(_spans(seen, on_device=bool(cuda)))
    finally:
        runtime.close()


def _step(trainer: Trainer, step: int) -> None:
    ctx = trainer.context(step)
    with record_function(f"{PHASE}around sampling"):
        batch = trainer.experience(ctx).batch
    with record_function(f"{PHASE}update"):
        trainer.learn(ctx, batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    trainer.runtime.metrics()


def _spans(seen: profile, *, on_device: bool) -> list[Span]:
    """Return what the profiler saw on this process's threads, in seconds."""
    return [
        Span(
            event.name,
            event.time_range.start * MICRO,
            event.time_range.end * MICRO,
            (event.self_device_time_total if on_device else event.self_cpu_time_total) * MICRO,
            event.thread,
        )
        for event in seen.events() or ()
        if event.device_type == torch.autograd.DeviceType.CPU
    ]


def as_dict(found: Mapping[str, Phase], steps: int, folder: Path) -> dict[str, object]:
    """Return it as JSON can hold it; all seconds are of one step."""
    return {
        "steps": steps,
        "seconds": sum(phase.seconds for phase in found.values()) / steps,
        "trace": str(folder / TRACE),
        "phases": {
            name: {
                "seconds": phase.seconds / steps,
                "operators": [
                    {"name": operator, "calls": spent.calls / steps, "seconds": spent.seconds / steps}
                    for operator, spent in phase.largest(len(phase.operators))
                ],
            }
            for name, phase in found.items()
        },
    }


def _print(found: Mapping[str, Phase], steps: int, folder: Path) -> None:
    total = sum(phase.seconds for phase in found.values())
    table = Table(title=f"{total / steps:.3g} s a step under the profiler, which itself takes time; {steps} looked at")
    for heading in ("phase", "operator"):
        table.add_column(heading)
    for heading in ("calls", "s", "share"):
        table.add_column(heading, justify="right")
    for name, phase in found.items():
        table.add_section()
        table.add_row(
            f"[bold]{escape(name)}[/]", "", "", f"{phase.seconds / steps:.3g}", f"{phase.seconds / total:.0%}"
        )
        largest = phase.largest(OPERATORS)
        for operator, spent in largest:
            seconds, share = spent.seconds / steps, spent.seconds / total
            table.add_row("", escape(operator[:60]), f"{spent.calls / steps:g}", f"{seconds:.3g}", f"{share:.0%}")
    console = Console()
    console.print(table)
    most = next(iter(found), "")
    if most in ADVICE:
        console.print(f"Most goes into {most}. What makes it cheaper: {ADVICE[most]} (docs/faster.md).", markup=False)
    console.print(f"trace: {folder / TRACE} (chrome://tracing, ui.perfetto.dev)", markup=False)
