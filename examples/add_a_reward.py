"""A reward of your own is a function; this one likes dark pictures with one bright spot.

visalign train quickstart name=spots \
        'source.reward={type: function, call: "examples.add_a_reward:one_bright_spot"}' \
        evaluation.prompts=null
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def one_bright_spot(pixels: Tensor, prompts: Sequence[str]) -> list[float]:
    """Return one number per sample; larger is better.

    Args:
        pixels: `[B, F, 3, H, W]` in [0, 1]; a picture has F = 1.
        prompts: One text a sample.
    """
    brightness = pixels.mean(dim=(1, 2)).flatten(1)
    return (brightness.amax(dim=1) - brightness.mean(dim=1)).tolist()
