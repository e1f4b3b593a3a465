"""From pixels in [0, 1] to what a network was trained on, with gradient all the way.

A picture is scored as the 8-bit file it would be saved as, and resized as PIL resizes that file. Rounding has no
gradient of its own, so the gradient is passed straight through it.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize as torchvision_resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of pixels that networks trained on ImageNet expect."""

_PIL_UNIT = 2**22
"""PIL's weights are whole multiples of one part in this."""


def eight_bit(pixels: Tensor) -> Tensor:
    """Return pixels in [0, 1] rounded to 256 levels."""
    return _rounded(pixels * 255) / 255


def _rounded(levels: Tensor) -> Tensor:
    """Return the nearest of 0, 1, ..., 255, halves up, with the gradient of what was not rounded."""
    return levels + ((levels + 0.5).floor().clamp(0, 255) - levels).detach()


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize as the installed PIL's bicubic filter does, bit for bit: one side, then the other, 8 bits after each.

    Args:
        pixels: `[N, 3, H, W]` in [0, 1].
        height: Wanted.
        width: Wanted.

    Note:
        Which side is first shows in a few grey levels. PIL up to 12 always begins with the rows; PIL 13 begins with the
        columns where the height loses more than twice the pixels that the width loses.
    """
    columns_first = pil_begins_with_columns(pixels.shape[-2:], (height, width))
    return resize_in_order(pixels, height, width, columns_first=columns_first)


def resize_in_order(pixels: Tensor, height: int, width: int, *, columns_first: bool) -> Tensor:
    """Resize as PIL's bicubic filter does, bit for bit, in the order of one of its versions; arguments as `resize`."""
    levels = _rounded(pixels.double() * 255)  # in float64 the sums are exact, as they are in PIL's integers
    if columns_first:
        return (_rows(_rows(levels.mT, height).mT, width) / 255).float()
    return (_rows(_rows(levels, width).mT, height).mT / 255).float()


def pil_begins_with_columns(before: tuple[int, ...], after: tuple[int, int]) -> bool:
    """Return whether the installed PIL resizes the columns first; both sizes are (height, width)."""
    lost, lost_across = before[0] - after[0], before[1] - after[1]
    return lost > 0 and lost > 2 * lost_across and _pil_knows_two_orders()


@functools.cache
def _pil_knows_two_orders() -> bool:
    """Ask PIL itself, by a tall picture whose columns come first where any do: version numbers tell less."""
    tall = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(16, 3) ** 2 % 251)
    columns = tall.resize((3, 4), Image.Resampling.BICUBIC).resize((2, 4), Image.Resampling.BICUBIC)
    return tall.resize((2, 4), Image.Resampling.BICUBIC).tobytes() == columns.tobytes()


def resize_bytes(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize as torchvision's antialiased bicubic filter resizes bytes, which is another one than PIL's at hard edges.

    Args:
        pixels: `[N, 3, H, W]` in [0, 1].
        height: Wanted.
        width: Wanted.
    """
    if pixels.shape[-2:] == (height, width):
        return eight_bit(pixels)
    levels = (eight_bit(pixels).detach() * 255).round().byte()
    resized = torchvision_resize(levels, [height, width], InterpolationMode.BICUBIC, antialias=True).float() / 255
    smooth = interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    return smooth + (resized - smooth).detach()


def _rows(levels: Tensor, width: int) -> Tensor:
    if levels.shape[-1] == width:
        return levels
    return _rounded(levels @ _bicubic_weights(levels.shape[-1], width).to(levels.device).T)


def _bicubic_weights(before: int, after: int) -> Tensor:
    """Return the weights `[after, before]` of the old pixels in each new one, float64 multiples of 2^-22.

    Keys' cubic with a = -1/2, stretched over the pixels that become one, normalised; PIL rounds its weights so.
    """
    scale = before / after
    stretch = max(scale, 1.0)
    centre = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * scale
    old = torch.arange(before, dtype=torch.float64)
    reached = (old >= (centre - 2 * stretch + 0.5).floor()) & (old < (centre + 2 * stretch + 0.5).floor())
    x = ((old - centre + 0.5) / stretch).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0)) * reached
    weights = weights / weights.sum(1, keepdim=True) * _PIL_UNIT
    return (weights + 0.5 * weights.sign()).trunc() / _PIL_UNIT


def shortest_side(pixels: Tensor, side: int) -> Tensor:
    """Resize so that the shorter side is `side`; the longer one is rounded down, as torchvision does."""
    height, width = pixels.shape[-2:]
    if height <= width:
        return resize(pixels, side, int(side * width / height))
    return resize(pixels, int(side * height / width), side)


def centre_crop(pixels: Tensor, side: int, *, half_up: bool = False) -> Tensor:
    """Cut the middle square out of pictures that are at least as large.

    Args:
        pixels: `[N, 3, H, W]`.
        side: Of the square.
        half_up: Where an odd number of pixels goes, half of it is rounded to an even number (torchvision) rather than
            down (transformers).
    """
    top, left = ((length - side) / 2 for length in pixels.shape[-2:])
    top, left = (round(top), round(left)) if half_up else (int(top), int(left))
    return pixels[..., top : top + side, left : left + side]


def longest_side_padded(pixels: Tensor, side: int, *, antialias: bool = True) -> Tensor:
    """Resize in floating point so that the longer side is `side`, and pad with black to a square.

    Args:
        pixels: `[N, 3, H, W]` in [0, 1].
        side: Of the square.
        antialias: False gives what torchvision before 0.17 gave.

    Source: the preprocessing of HPSv2 (arXiv 2306.09341), which works on tensors: one pass, and nothing is clamped.
    """
    pixels = eight_bit(pixels)
    longest = max(pixels.shape[-2:])
    if longest != side:
        height, width = (max(1, round(length * side / longest)) for length in pixels.shape[-2:])
        size = (height, width)
        pixels = interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=antialias)
    below, right = (side - length for length in pixels.shape[-2:])
    return pad(pixels, (right // 2, right - right // 2, below // 2, below - below // 2))


def normalise(pixels: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> Tensor:
    """Return (pixels - mean) / std, by channel."""
    centre, spread = (torch.tensor(values, device=pixels.device).view(1, -1, 1, 1) for values in (mean, std))
    return (pixels - centre) / spread
