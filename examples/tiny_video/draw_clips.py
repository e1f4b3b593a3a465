"""Draw clips: the procedural films the tiny video pipeline learns from, with their captions."""

from __future__ import annotations

import numpy as np

from reward_models.verifiers.movements import DIRECTIONS, Movement, movements
from reward_models.verifiers.scenes import BACKGROUND, COLOURS, SIDE, coverage

FRAMES = 9
SIZES = (8.8, 10.4)  # square root of the object's area, pixels
TRAVEL = (5.5, 7.5)  # pixels from the first frame to the last
START = 4.0  # pixels off the middle, either way, at most, where the object starts: from there every direction is open
CENTRE = 1.0  # the same for the first frames that ship with the prompts
_AXIS = np.arange(SIDE, dtype=np.float32) + 0.5
# How far the outline of an object of size 1 reaches from its centroid: to either side, up, down.
_REACH = {"circle": (0.565, 0.565, 0.565), "square": (0.5, 0.5, 0.5), "triangle": (0.76, 0.878, 0.439)}


def draw(movement: Movement, rng: np.random.Generator, *, centred: bool = False) -> np.ndarray:
    """Return a clip of the movement, `[9, 32, 32, 3]` uint8; places, sizes, speeds and shades differ from draw to draw.

    Args:
        movement: What it shows.
        rng: Where the differences come from.
        centred: Start as near to the middle as the first frames of the prompts.
    """
    size, travel = rng.uniform(*SIZES), rng.uniform(*TRAVEL)
    side, up, down = (size * reach for reach in _REACH[movement.shape])
    low, high = np.array([side + 1, up + 1]), np.array([SIDE - side - 1, SIDE - down - 1])
    way = np.array(DIRECTIONS[movement.direction]) * travel
    off = rng.uniform(-1, 1, 2) * (CENTRE if centred else START)
    start = np.clip(SIDE / 2 + off, low - np.minimum(way, 0), high - np.maximum(way, 0))
    x, y = (start + way * np.linspace(0, 1, FRAMES)[:, None]).T[..., None, None].astype(np.float32)
    alpha = coverage(movement.shape, _AXIS - x, _AXIS[:, None] - y, size)[..., None]
    ground = np.full((1, SIDE, SIDE, 3), BACKGROUND, np.float32) + rng.uniform(-8, 8)
    colour = np.array(COLOURS[movement.colour]) + rng.uniform(-12, 12, 3)
    return np.clip(ground + alpha * (colour - ground), 0, 255).round().astype(np.uint8)


def draw_dataset(count: int, seed: int) -> tuple[np.ndarray, list[Movement]]:
    """Return `count` clips `[N, 9, 32, 32, 3]` uint8 of the train split, and what each shows."""
    rng = np.random.default_rng(seed)
    known = movements("train")
    shown = [known[int(rng.integers(len(known)))] for _ in range(count)]
    return np.stack([draw(movement, rng) for movement in shown]), shown


def describe(shown: list[Movement], lies: float, seed: int) -> list[str]:
    """Return a caption of the train split for each clip.

    Args:
        shown: What the clips show.
        lies: Share of the captions whose direction is drawn at random. Captions of real clips are wrong about motion
            too, and what a model learns from them is what alignment has to mend.
        seed: Of what is drawn.
    """
    rng = np.random.default_rng(seed)
    known = movements("train")
    captions = []
    for movement in shown:
        if rng.random() < lies:
            same = [other for other in known if (other.colour, other.shape) == (movement.colour, movement.shape)]
            captions.append(same[int(rng.integers(len(same)))].caption)
        else:
            captions.append(movement.caption)
    return captions
