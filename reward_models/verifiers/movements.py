"""The little language of motion: captions such as "a red circle moves left", and a reader that follows the object.

The reader looks at each frame with the reader of scenes (`reward_models/verifiers/scenes.py`), fits a straight line
through the places where it found one object, and grades what was found against the caption. No network takes part in
it.

Conventions: frames are 32 x 32, x grows to the right and y downwards, lengths are in pixels; travel is measured over
the whole clip, however many frames that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward_models.verifiers.scenes import COLOURS, SHAPES, Sight, read

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
WORDS = tuple(sorted({"a", "moves", *COLOURS, *SHAPES, *DIRECTIONS}))

MIN_TRAVEL = 4.0  # pixels along its direction from which on an object has moved; clips are drawn with 5.5 or more
MAX_DRIFT = 0.5  # pixels across for each pixel along: 27 degrees off the axis
MAX_LEAP = 4.5  # pixels from a frame to the next; what goes further was not moving, it was somewhere else
SEEN = 0.7  # share of the frames that have to show one object for its motion to be told
_QUOTED = 80  # characters of a caption that a message quotes


@dataclass(frozen=True)
class Movement:
    """What a caption asks for: one object of a colour and a shape that moves in a direction."""

    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        """The one caption of this motion."""
        return f"a {self.colour} {self.shape} moves {self.direction}"


@dataclass(frozen=True)
class Track:
    """What the reader saw of a clip.

    Attributes:
        frames: The objects of each frame.
        travel: (x, y) that the one object moved from the first frame to the last, in pixels; None where too few frames
            show one object, or where it leaps.
    """

    frames: tuple[tuple[Sight, ...], ...]
    travel: tuple[float, float] | None


@dataclass(frozen=True)
class Grades:
    """How well a clip shows a movement.

    Attributes:
        strict: 1 when every frame shows one object of that colour and shape, and it moves that way; else 0.
        graded: Half `object`, half `motion`, in [0, 1].
        direction: 1 when what moves, whatever it is, moves that way; else 0.
        object: Mean over the frames: 0 unless there is one object, else 0.5 for its colour and 0.5 for its shape.
        motion: Travel that way over `MIN_TRAVEL`, at most 1, less what drifts to the side; 0 for none or the other way.
    """

    strict: float
    graded: float
    direction: float
    object: float
    motion: float


def parse(caption: str) -> Movement:
    """Return the movement a caption asks for.

    Raises:
        ValueError: If the caption is not in the language; the message says what the language is.
    """
    words = caption.lower().split()
    if len(words) == 5 and (words[0], words[3]) == ("a", "moves"):
        _, colour, shape, _, direction = words
        if colour in COLOURS and shape in SHAPES and direction in DIRECTIONS:
            return Movement(colour, shape, direction)
    quoted = repr(caption if len(caption) <= _QUOTED else caption[: _QUOTED - 3] + "...")
    raise ValueError(
        f"the caption {quoted} is not 'a COLOUR SHAPE moves DIRECTION', as in 'a red circle moves left': COLOUR is one "
        f"of {', '.join(COLOURS)}; SHAPE one of {', '.join(SHAPES)}; DIRECTION one of {', '.join(DIRECTIONS)}"
    )


def split_of(movement: Movement) -> str:
    """Return "train", "dev" (1 caption in 6) or "test" (1 in 6).

    Objects are split, each with all its directions: dev and test each have one object of every shape, in three colours.
    Were single directions of an object held out, a model could learn from the others that it never moves that way.
    """
    residue = (list(COLOURS).index(movement.colour) - 2 * SHAPES.index(movement.shape)) % len(COLOURS)
    return {0: "test", 1: "dev"}.get(residue, "train")


def movements(split: str | None = None) -> list[Movement]:
    """Return the 72 movements of the language, or those of one split (48 train, 12 dev, 12 test)."""
    every = [Movement(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS]
    return [movement for movement in every if split in (None, split_of(movement))]


def follow(clips: np.ndarray) -> list[Track]:
    """Find the object of each clip and how far it moves.

    Args:
        clips: `[B, F, 32, 32, 3]`, levels from 0 to 255.
    """
    sights = read(clips.reshape(-1, *clips.shape[2:]))
    count = clips.shape[1]
    rows = [sights[i * count : (i + 1) * count] for i in range(len(clips))]
    return [Track(tuple(tuple(frame) for frame in row), _travel(row)) for row in rows]


def _travel(row: Sequence[Sequence[Sight]]) -> tuple[float, float] | None:
    """Return the travel of the straight line that fits the places of the one object best."""
    single = np.array([k for k, frame in enumerate(row) if len(frame) == 1])
    if len(single) < max(2, SEEN * len(row)):
        return None
    places = np.array([(row[k][0].x, row[k][0].y) for k in single])
    pace = np.linalg.norm(np.diff(places, axis=0), axis=1) / np.diff(single)
    if pace.max() > MAX_LEAP:
        return None
    times = single - single.mean()
    slope = times @ (places - places.mean(0)) / (times @ times)
    x, y = (slope * (len(row) - 1)).tolist()
    return x, y


def grade(movement: Movement, track: Track) -> Grades:
    """Compare what was asked for with what was seen."""
    single = [frame[0] for frame in track.frames if len(frame) == 1]
    matches = sum((sight.colour == movement.colour) + (sight.shape == movement.shape) for sight in single)
    shown = matches / (2 * len(track.frames))
    moved, moves = 0.0, False
    if track.travel is not None:
        (x, y), (dx, dy) = track.travel, DIRECTIONS[movement.direction]
        along, across = x * dx + y * dy, abs(x * dy - y * dx)
        moves = along >= MIN_TRAVEL and across <= MAX_DRIFT * along
        moved = min(1.0, along / MIN_TRAVEL) * max(0.0, 1 - across / along) if along > 0 else 0.0
    return Grades(float(moves and shown == 1), (shown + moved) / 2, float(moves), shown, moved)
