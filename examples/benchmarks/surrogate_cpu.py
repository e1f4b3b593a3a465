"""What credit position by position costs on a CPU: the loss of ViPO against that of scalar GRPO, forward and backward.

    python -m examples.benchmarks.surrogate_cpu --repeats 15

`plain` is scalar GRPO written out, as public trainers write it: two Gaussian log densities, their means over the
latent, the clipped surrogate, autograd. The others are `clipped_surrogate` of this repository in torch, with a scalar
and with a map. Shapes are latents of real models; times are medians of interleaved repetitions, CPU seconds of this
process.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from alignment.objectives.kernels.actions import Actions
from alignment.objectives.kernels.surrogate import clipped_surrogate
from examples.benchmarks.conditions import conditions, said
from samplers import Step
from samplers.kernels.dispatch import choose

SHAPES = {  # rows, latent, map
    "FLUX 512 (1024 tokens)": (4, (1024, 64), (1024, 1)),
    "SD3.5 512": (4, (16, 64, 64), (1, 64, 64)),
    "Wan 480p, 9 frames": (1, (16, 3, 60, 104), (1, 3, 60, 104)),
}
CLIP = 2e-2


def plain(model_output: Tensor, actions: Actions, advantage: Tensor) -> Tensor:
    """Return the loss of scalar GRPO, `[n]`."""
    step, x, x_next = actions.step, actions.x, actions.x_next[:, 0]

    def log_prob(v: Tensor) -> Tensor:
        mean = step.a * x + step.b * v
        density = -((x_next - mean) ** 2) / (2 * step.std**2) - torch.log(step.std) - 0.5 * math.log(2 * math.pi)
        return density.flatten(1).mean(dim=1)

    with torch.no_grad():
        old = log_prob(actions.model_output)
    ratio = torch.exp(log_prob(model_output) - old)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))


def jobs(rows: int, latent: tuple[int, ...], positions: tuple[int, ...]) -> dict[str, Callable[[], Tensor]]:
    """Return what is compared; each runs one loss and its backward pass."""
    x, old, model_output = torch.randn(3, rows, *latent)
    step = Step.of(1.0, -0.05, 0.1)
    x_next = (step.mean(x, old) + 0.1 * torch.randn(rows, *latent))[:, None]
    actions, credit, maps = Actions(x, x_next, old, step), torch.randn(rows, 1), torch.rand(rows, 1, *positions)
    laid = credit.reshape(rows, 1, *(1,) * len(latent)) * maps
    model_output = (old + 0.01 * model_output).requires_grad_()

    def with_gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss.sum(), model_output)[0]

    return {
        "plain scalar": lambda: with_gradient(plain(model_output, actions, credit[:, 0])),
        "ours, scalar": lambda: with_gradient(clipped_surrogate(model_output, actions, credit, CLIP, "mean")[0]),
        "ours, map": lambda: with_gradient(clipped_surrogate(model_output, actions, laid, CLIP, "sum")[0]),
    }


def main() -> None:
    """Print CPU milliseconds of each, and how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    choose("torch")
    print(said(conditions()))
    for name, shape in SHAPES.items():
        compared = jobs(*shape)
        seconds: dict[str, list[float]] = {job: [] for job in compared}
        for repeat in range(repeats + 2):
            for job, run in compared.items():
                start = time.process_time()
                run()
                if repeat >= 2:
                    seconds[job].append(time.process_time() - start)
        middle = {job: statistics.median(values) for job, values in seconds.items()}
        told = ", ".join(f"{job} {1000 * value:.2f} ms" for job, value in middle.items())
        ratios = [middle[job] / middle["plain scalar"] for job in ("ours, scalar", "ours, map")]
        print(f"{name}: {told}; scalar {ratios[0]:.2f} x, map {ratios[1]:.2f} x plain")


if __name__ == "__main__":
    main()
