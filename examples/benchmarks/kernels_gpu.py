"""Time and bytes of the fused kernels on a GPU: `make bench-gpu`.

Each kernel, forward and backward, against the same formula in eager torch and under torch.compile, at the latents of a
1024-pixel FLUX picture and of an 81-frame Wan clip. The megabytes are those that the kernel reads and writes; the
bandwidth they make is set against that of a plain copy, measured here. Prints JSON, and writes it with `--output`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.objectives.kernels.actions import Actions
from alignment.objectives.kernels.matching import matching_error, noised_pair
from alignment.objectives.kernels.surrogate import clipped_surrogate
from samplers import Step
from samplers.kernels.dispatch import INSTALLED, choosing
from samplers.kernels.gaussian import gaussian_step
from samplers.kernels.layout import layout_of
from samplers.paths.path import RectifiedFlow

SHAPES = {  # rows, latent, map
    "FLUX 1024": (12, (4096, 64), (4096, 1)),
    "Wan 480p": (4, (16, 21, 60, 104), (1, 21, 60, 104)),
}
CLIP = 2e-2
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        forward: Returns the loss of each row, or, where there is nothing to learn, what was computed.
        leaf: What the loss is differentiated by; None where there is nothing to learn.
        bytes: That have to be read and written at least.
    """

    forward: Callable[[], Tensor]
    leaf: Tensor | None
    bytes: int

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Compute `forward`, and its gradient where there is one."""
        out = forward()
        return out if self.leaf is None else torch.autograd.grad(out.sum(), self.leaf)[0]


def jobs(rows: int, latent: Sequence[int], positions: Sequence[int], device: str) -> dict[str, Job]:
    """Return the kernels at one shape; networks answer in bfloat16, states are float32."""
    x, old, noise = torch.randn(3, rows, *latent, device=device)
    step = Step.of(1.0, -0.05, 0.1).to(x.device)
    v = (old + 0.01 * noise).bfloat16().requires_grad_()
    actions = Actions(x, step.sample(x, old, noise)[:, None], old, step)
    maps, credit = torch.rand(rows, 1, *positions, device=device), torch.randn(rows, 1, device=device)
    layout = layout_of(latent, positions)
    assert layout is not None
    t, numbers, size = torch.rand(rows, device=device), x.numel(), v.element_size()
    # A gradient is written once with its loss, and read and written once more when the backward pass scales it.
    grad = 3 * size
    return {
        "step and density": Job(lambda: gaussian_step(x, old, noise, step, layout)[1], None, 16 * numbers),
        "surrogate of a map": Job(
            lambda: clipped_surrogate(v, actions, maps, CLIP, "sum")[0], v, (12 + size + grad) * numbers
        ),
        "surrogate of a scalar": Job(
            lambda: clipped_surrogate(v, actions, credit, CLIP, "mean")[0], v, (20 + 2 * size + grad) * numbers
        ),
        "noising, target, error": Job(
            lambda: matching_error(v, noised_pair(RectifiedFlow(), x, noise, t)[1]), v, (20 + size + grad) * numbers
        ),
    }


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
    times: list[float] = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def copy_bandwidth(repeats: int) -> float:
    """Return the bytes a second of a copy within the card, read and written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / milliseconds(lambda: target.copy_(source), repeats) * 1000


def measure(repeats: int) -> dict[str, object]:
    """Return every number, by shape and kernel."""
    peak = copy_bandwidth(repeats)
    told: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy, GB/s": peak / 1e9,
    }
    for shape in SHAPES:
        for name, job in jobs(*SHAPES[shape], "cuda").items():
            with choosing("triton"):
                fused = milliseconds(lambda job=job: job.run(job.forward), repeats)
            with choosing("torch"):
                eager = milliseconds(lambda job=job: job.run(job.forward), repeats)
                forward = torch.compile(job.forward)
                compiled = milliseconds(lambda job=job, forward=forward: job.run(forward), repeats)
            told[f"{shape}, {name}"] = {
                "fused, ms": fused,
                "eager, ms": eager,
                "torch.compile, ms": compiled,
                "MB": job.bytes / 1e6,
                "of copy bandwidth": job.bytes / (fused / 1000) / peak,
                "times eager": eager / fused,
            }
    return told


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", help="file for the JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("make bench-gpu measures a GPU, and torch sees none here; nothing was measured", file=sys.stderr)
        return 3
    if not INSTALLED:
        print(
            "make bench-gpu measures Triton kernels, and triton is not installed: pip install triton", file=sys.stderr
        )
        return 3
    told = json.dumps(measure(arguments.repeats), indent=1)
    print(told)
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(told + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
