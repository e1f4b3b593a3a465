"""Compile every kernel for two GPUs without having one, and print registers and spills as JSON.

Usage: TRITON_INTERPRET=0 python tests/kernels/compiled.py; test_compiled.py runs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from alignment.objectives.kernels import _matching_triton, _surrogate_triton
from samplers.kernels import _gaussian_triton
from samplers.kernels.layout import MemoryLayout, in_pieces, layout_of

TARGETS = (80, 90)
FLUX = layout_of((4096, 64), (4096, 1))  # a picture of 1024 pixels, packed
WAN = layout_of((16, 21, 60, 104), (1, 21, 60, 104))  # 81 frames of 480 x 832
FLOATS = {"clip", "density_scale", "loss_scale", "scale"}
SINGLE = {"step_ptr", "log_prob_ptr", "advantage_ptr", "told_ptr", "sums_ptr", "pull_ptr", "mix_ptr"}


def cases() -> Iterator[tuple[str, Any, dict[str, int]]]:
    """Yield (name, kernel, its constants) as the wrappers launch them."""
    for name, layout in {"flux": FLUX, "wan": WAN}.items():
        assert layout is not None
        yield f"surrogate of a map, {name}", _surrogate_triton._map, tiled(layout)
        yield f"step with density, {name}", _gaussian_triton._step, {**tiled(layout), "DENSITY": True}
    yield "step", _gaussian_triton._step, {**tiled(in_pieces(16 * 21 * 60 * 104)), "DENSITY": False}
    for name in ("_sum", "_pull"):
        yield f"surrogate of a scalar, {name}", vars(_surrogate_triton)[name], {"BLOCK": 2048}
    for name in ("_noise", "_error"):
        yield f"matching, {name}", vars(_matching_triton)[name], {"BLOCK": 2048}


def tiled(layout: MemoryLayout) -> dict[str, int]:
    block_p, block_c = layout.block
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, ("stride_c" if layout.packed else "stride_p"): 1}


def kind(argument: str, constants: dict[str, int]) -> str:
    """Return Triton's name of an argument's type, the latents being bfloat16."""
    if argument in constants:
        return "constexpr"
    if argument in FLOATS:
        return "fp32"
    if argument.endswith("_ptr"):
        return "*fp32" if argument in SINGLE else "*bf16"
    return "i32"


def compiled(kernel: Any, constants: dict[str, int], target: int) -> str:
    """Return the PTX."""
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: kind(name, constants) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr")},
    )
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": 4}).asm["ptx"]


def usage(ptx: str) -> dict[str, int]:
    """Return what the assembler says of registers and spilled bytes; the first that knows this PTX is asked."""
    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None
    said = ""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        for assembler in sorted(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*"), reverse=True):
            command = [str(assembler), "-v", "--gpu-name", architecture[1], file.name, "-o", "/dev/null"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            if done.returncode == 0:
                found = {key: re.search(rf"(\d+) {key}", said) for key in ("registers", "bytes spill stores")}
                return {key: int(match[1]) for key, match in found.items() if match is not None}
    raise RuntimeError(f"no assembler of Triton's takes {architecture[1]}: {said}")


def main() -> None:
    """Print {"name, sm_N": {"registers": ..., "bytes spill stores": ...}}."""
    told = {
        f"{name}, sm_{target}": usage(compiled(kernel, constants, target))
        for name, kernel, constants in cases()
        for target in TARGETS
    }
    sys.stdout.write(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
