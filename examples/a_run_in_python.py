"""A run made in Python, with a reward of its own: no YAML, and the same folder as `visalign train` leaves.

python examples/a_run_in_python.py [STEPS [FOLDER]]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import Tensor

from alignment import (
    BatchNorm,
    BatchSettings,
    Branch,
    ClippedSurrogate,
    Data,
    Evaluation,
    FlowSDE,
    Function,
    Lora,
    OnPolicySteps,
    Optimizer,
    Output,
    PolicySpec,
    Result,
    Run,
    train,
)


def redness(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how much redder than green and blue each sample is; pixels are [batch, frames, 3, height, width]."""
    red, green, blue = pixels.mean(dim=(1, 3, 4)).unbind(dim=1)
    return red - (green + blue) / 2


def main(steps: int, folder: str) -> Result:
    """Align the tiny FLUX with `redness`, and print what came of it."""
    run = Run(
        name="in_python",
        policy=PolicySpec(
            "assets/tiny_flux",
            call={"height": 32, "width": 32, "num_inference_steps": 4, "max_sequence_length": 12},
            lora=Lora(rank=16, merge=True),
            autocast="bfloat16",
        ),
        data=Data("assets/prompts/shapes_train.txt"),
        source=OnPolicySteps(
            prompts=4,
            group_size=8,
            prompts_per_call=4,
            dynamics=FlowSDE(a=0.7),
            window=Branch(steps=(0, 1)),
            reward=Function(call=redness),
            advantage=BatchNorm(),
        ),
        objective=ClippedSurrogate(clip=1e-2, weight="equal"),
        steps=steps,
        optimizer=Optimizer(learning_rate=7e-4, betas=(0.9, 0.99), max_grad_norm=1e-3),
        batch=BatchSettings(microbatch=64),
        evaluation=Evaluation(prompts="assets/prompts/shapes_test.txt", images_per_prompt=2),
        output=Output(folder=folder, overwrite=True),
    )
    result = train(run)
    print(result)
    for line in result.metrics:
        print(f"step {line['step']}: reward {line['reward/mean']:.4f}, gradient {line['grad/norm']:.3g}")
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, sys.argv[2] if len(sys.argv) > 2 else "runs")
