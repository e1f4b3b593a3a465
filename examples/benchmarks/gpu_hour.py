"""Everything that a GPU has to tell, in at most ten minutes: `make bench-gpu`, on a machine with one.

Tests the fused kernels, measures them, then takes steps of full-size models with random weights (`gpu_step`). Each part
is a process of its own whose numbers are kept as soon as it ends; what did not fit is measured by the next call. Writes
`results.json` and, of what there is, `page.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks.conditions import conditions
from examples.benchmarks.gpu_step import CASES, FIRST_ERROR, PHASES

PYTHON = (sys.executable, "-m")
PARTS: dict[str, Sequence[str]] = {
    "kernels tested": (*PYTHON, "pytest", "-q", "tests/kernels"),
    "kernels": (*PYTHON, "examples.benchmarks.kernels_gpu"),
    **{name: (*PYTHON, "examples.benchmarks.gpu_step", name) for name in CASES},
}
GB = 1e9


def main() -> int:
    """Measure what is missing, write both files, and return the exit code: 0 if nothing is missing any more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_gpu"))
    parser.add_argument("--seconds", type=float, default=600.0, help="for all parts of this call")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("make bench-gpu measures a GPU, and torch sees none here; nothing was measured", file=sys.stderr)
        return 3
    args.folder.mkdir(parents=True, exist_ok=True)
    results = measure_missing(PARTS, args.folder / "results.json", args.seconds)
    (args.folder / "page.md").write_text(page(results), encoding="utf-8")
    missing = [name for name in PARTS if name not in results]
    print(f"{args.folder / 'page.md'}{': missing ' + ', '.join(missing) if missing else ''}")
    return 1 if missing else 0


def measure_missing(parts: Mapping[str, Sequence[str]], file: Path, seconds: float) -> dict[str, Any]:
    """Run the parts that `file` has no result of, for `seconds` in all, and return what it then has.

    A part that fails or does not end is told on the standard error, and is missing. What a part prints after its last
    line that begins with "{" is its result, as JSON; one that prints none has its last line as its result.
    """
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    end = time.monotonic() + seconds
    for name, command in parts.items():
        left = end - time.monotonic()
        if name in results or left <= 0:
            continue
        print(f"{name}: at most {left:.0f} s", file=sys.stderr)
        try:
            done = subprocess.run(
                command,
                timeout=left,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                env={**os.environ, "TRITON_INTERPRET": "0"},
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: did not end in time", file=sys.stderr)
            continue
        if done.returncode:
            print(f"{name}: ended with code {done.returncode}", file=sys.stderr)
            continue
        results[name] = {"found": _printed(done.stdout), "conditions": conditions()}
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        whole.replace(file)
    return results


def _printed(output: str) -> Any:
    begin = output.find("\n{") + 1 if not output.startswith("{") else 0
    return json.loads(output[begin:]) if output[begin:].startswith("{") else (output.strip().splitlines() or [""])[-1]


def page(results: Mapping[str, Any]) -> str:
    """Return the page of what was measured."""
    lines = ["# On a GPU", ""]
    if tested := results.get("kernels tested"):
        lines += [f"Kernels compiled and tested: {tested['found']}.", ""]
    if kernels := results.get("kernels"):
        lines += _kernels(kernels["found"])
    steps = {name: results[name]["found"] for name in CASES if name in results}
    if steps:
        lines += _steps(steps)
    for name, result in steps.items():
        lines += [f"## {name}", "", *_first_ratios(result), ""]
    return "\n".join(lines) + "\n"


def _kernels(found: Mapping[str, Any]) -> list[str]:
    rows = {name: job for name, job in found.items() if isinstance(job, Mapping)}
    return [
        f"{found['gpu']}, torch {found['torch']}; a plain copy moves {found['copy, GB/s']:.0f} GB/s.",
        "",
        "| kernel and its gradient | fused, ms | eager, ms | torch.compile, ms | of copy bandwidth | times eager |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {job['fused, ms']:.3f} | {job['eager, ms']:.3f} | {job['torch.compile, ms']:.3f} "
            f"| {job['of copy bandwidth']:.2f} | {job['times eager']:.1f} |"
            for name, job in rows.items()
        ),
        "",
    ]


def _steps(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "Full sizes, random weights, one prompt; medians of steps after the first.",
        "",
        f"| model | {' | '.join(f'{phase}, s' for phase in PHASES)} | memory, GB | planned, GB | MFU |",
        "|---|" + "---|" * (len(PHASES) + 3),
    ]
    for name, result in found.items():
        measured, planned = result["measured"], result.get("planned")
        spent = " | ".join(f"{measured['seconds'][phase]:.2f}" for phase in PHASES)
        memory = "-" if measured["bytes"] is None else f"{measured['bytes'] / GB:.1f}"
        plan = f"{planned['bytes'] / GB:.1f} | {result['mfu']:.2f}" if planned else "- | -"
        lines.append(f"| {name} | {spent} | {memory} | {plan} |")
    return [*lines, ""]


def _first_ratios(result: Mapping[str, Any]) -> list[str]:
    rows = {
        f"{count} rows of a microbatch": f"{error:.1e} | " for count, error in result["first ratio by rows"].items()
    }
    for name, other in {**result["by attention"], "compiled blocks": result["compiled"]}.items():
        reached = isinstance(other, Mapping)  # else it is the reason why not
        rows[name] = f"{other[FIRST_ERROR]:.1e} | {other['seconds']['total']:.2f}" if reached else f"{other} | "
    heading = ["| setting | first ratio - 1, largest | step, s |", "|---|---|---|"]
    return heading + [f"| {name} | {told} |" for name, told in rows.items()]


if __name__ == "__main__":
    sys.exit(main())
