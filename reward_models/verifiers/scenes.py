"""The little language of scenes: captions, what they mean, and a reader that finds the objects in a picture.

A caption names one or two groups of objects: "two red circles", "a blue square and a green triangle",
"a white circle left of two yellow squares". The reader is ordinary image processing, no network: it labels connected
components, lets their pixels vote for a colour, and fits circle, square and triangle of the same area to the soft
outline. It is deterministic, and fast enough to judge every picture of a training step.

Conventions: pictures are 32 x 32, x grows to the right and y downwards, lengths are in pixels, and the size of an
object is the square root of its area, whatever its shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

SIDE = 32
BACKGROUND = (24, 24, 32)
# Six corners of the colour cube, softened: the nearest two are 150 apart, and no two have a similar hue.
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 215, 40),
    "purple": (200, 60, 220),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("a", "two", "three")
RELATIONS = ("left of", "right of", "above", "below")
WORDS = tuple(sorted({*COUNTS, *COLOURS, *SHAPES, *(s + "s" for s in SHAPES), "and", *" ".join(RELATIONS).split()}))

_NAMES = tuple(COLOURS)
_RAYS = np.array(list(COLOURS.values()), np.float32) - np.array(BACKGROUND, np.float32)
_RAYS_SQUARED = (_RAYS**2).sum(1)
_FOREGROUND = 70  # levels (of 255) away from the background in some channel
_SPECK = 8  # components of fewer pixels are noise, not objects
_MIN_AREA = 14.0  # soft area below which no shape can be told
_MAX_RESIDUAL = 0.2  # squared misfit per unit of area above which the outline is none of the three
_MAJORITY = 0.6  # share of a component's pixels that have to agree on its colour
_CROP = 20
_CREDIT = (0.0, 0.4, 1.0)  # for an object with neither, one, or both of the colour and the shape asked for
_GAP = 1.5  # pixels between the nearest centres of two groups for a relation to hold
# Neighbours within a picture (4-connected), none between pictures of the batch.
_CONNECT = np.zeros((3, 3, 3), bool)
_CONNECT[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


@dataclass(frozen=True)
class Group:
    """`count` (1 to 3) objects of one colour and one shape."""

    count: int
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shape}{'s' if self.count > 1 else ''}"


@dataclass(frozen=True)
class Scene:
    """What a caption asks for: one group, or two joined by "and" (relation None) or by one of `RELATIONS`."""

    groups: tuple[Group, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        """The one caption of this scene."""
        return f" {self.relation or 'and'} ".join(str(g) for g in self.groups)

    @property
    def kind(self) -> str:
        """One of "single", "and" and "relation"."""
        return "single" if len(self.groups) == 1 else "relation" if self.relation else "and"


class Sight(NamedTuple):
    """An object that the reader found; `shape` is None when the outline is none of the three."""

    colour: str
    shape: str | None
    x: float
    y: float


_QUOTED = 80  # characters of a caption that a message quotes


def parse(caption: str) -> Scene:
    """Return the scene a caption asks for.

    Raises:
        ValueError: If the caption is not in the language; the message says what the language is.
    """
    text = " ".join(caption.lower().split())
    for joint in (*RELATIONS, "and"):
        if f" {joint} " in text:
            first, second = (_parse_group(part, caption) for part in text.split(f" {joint} ", 1))
            if (first.colour, first.shape) == (second.colour, second.shape):
                raise ValueError(
                    f"both groups of {_quoted(caption)} are {first.colour} {first.shape}s: make them differ"
                )
            return Scene((first, second), None if joint == "and" else joint)
    return Scene((_parse_group(text, caption),))


def _parse_group(text: str, caption: str) -> Group:
    words = text.split()
    if len(words) == 3 and words[0] in COUNTS and words[1] in COLOURS:
        count = COUNTS.index(words[0]) + 1
        for shape in SHAPES:
            if words[2] == (shape + "s" if count > 1 else shape):
                return Group(count, words[1], shape)
    raise ValueError(
        f"{_quoted(text)} in the caption {_quoted(caption)} is not COUNT COLOUR SHAPE, as in 'two red circles': "
        f"COUNT is one of {', '.join(COUNTS)}; COLOUR one of {', '.join(COLOURS)}; SHAPE one of {', '.join(SHAPES)}, "
        f"with an s after two and three. Two groups are joined by 'and', {', '.join(repr(r) for r in RELATIONS)}."
    )


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "...")


def split_of(scene: Scene) -> str:
    """Return "train", "dev" (1 caption in 6) or "test" (1 in 6).

    A Latin square decides, not a hash: of the 54 captions with one group a hash puts hardly any circle in the test
    split, while here each split has every pair of count and shape equally often, and all six colours.
    """
    residue = 0 if scene.relation is None else RELATIONS.index(scene.relation) + 1
    for group in scene.groups:
        residue += _NAMES.index(group.colour) - group.count - 2 * SHAPES.index(group.shape)
    return {0: "test", 3: "dev"}.get(residue % len(_NAMES), "train")


def single_captions(split: str | None = None) -> list[str]:
    """Return the 54 captions with one group, or those of one split (36 train, 9 dev, 9 test)."""
    scenes = [Scene((Group(n + 1, c, s),)) for n in range(len(COUNTS)) for c in COLOURS for s in SHAPES]
    return [scene.caption for scene in scenes if split in (None, split_of(scene))]


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Return the share of each pixel that an object covers, in [0, 1].

    The signed distance to the outline, clipped to half a pixel on either side; triangles are equilateral, upright.

    Args:
        shape: One of `SHAPES`.
        dx: Pixel centre minus object centroid, to the right.
        dy: The same, downwards.
        size: Square root of the object's area.
    """
    if shape == "circle":
        distance = np.sqrt(dx**2 + dy**2) - size / np.pi**0.5
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - size / 2
    else:
        height = size * 3**0.25  # area = height^2 / sqrt(3); the centroid is a third of the height above the base
        slope = (3**0.5 * np.abs(dx) - dy - height * 2 / 3) / 2
        distance = np.maximum(slope, dy - height / 3)
    return np.clip(0.5 - distance, 0, 1)


def read(pictures: np.ndarray) -> list[list[Sight]]:
    """Find the objects in each picture.

    Args:
        pictures: `[B, 32, 32, 3]`, levels from 0 to 255.

    Returns:
        The objects of each picture, in the order of a scan from the top left.
    """
    from scipy import ndimage  # it takes a tenth of a refused config's time to import

    light = pictures.astype(np.float32) - np.array(BACKGROUND, np.float32)
    labels, found = cast(tuple[np.ndarray, int], ndimage.label(np.abs(light).max(-1) > _FOREGROUND, _CONNECT))
    where = labels.nonzero()
    owner = labels[where]
    area = np.bincount(owner, minlength=found + 1)
    # The angle, not the distance, decides a pixel's vote: pixels of the rim are mixed with the dark background.
    vote = (light[where][:, None] * (_RAYS / _RAYS_SQUARED[:, None] ** 0.5)).sum(-1).argmax(-1)
    votes = np.bincount(owner * len(_NAMES) + vote, minlength=(found + 1) * len(_NAMES)).reshape(found + 1, -1)
    objects = 1 + np.flatnonzero(area[1:] >= _SPECK)
    colour = votes[objects].argmax(1)
    agree = votes[objects, colour] >= _MAJORITY * area[objects]
    picture, y, x = (np.bincount(owner, w, found + 1)[objects] / area[objects] for w in where)
    picture = picture.round().astype(int)
    top, left = (y - _CROP / 2 + 1).astype(int), (x - _CROP / 2 + 1).astype(int)
    alpha, whole = _outline(light, labels, (picture, top, left), objects, colour)
    shape, cx, cy = _fit(alpha)
    shape[~agree | (whole != area[objects])] = -1
    sights: list[list[Sight]] = [[] for _ in pictures]
    columns = (picture, colour, shape, cx + left, cy + top)
    for row, hue, form, px, py in zip(*(column.tolist() for column in columns), strict=True):
        sights[row].append(Sight(_NAMES[hue], SHAPES[form] if form >= 0 else None, px, py))
    return sights


def _outline(
    light: np.ndarray, labels: np.ndarray, corner: tuple[np.ndarray, ...], objects: np.ndarray, colour: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut out each object: its soft outline `[N, 20, 20]` in [0, 1], and how many of its pixels fell in the cut."""
    picture, top, left = (c[:, None, None] for c in corner)
    step = np.arange(_CROP) + _CROP
    index = picture, top + step[:, None], left + step
    own = np.pad(labels, ((0, 0), (_CROP, _CROP), (_CROP, _CROP)))[index] == objects[:, None, None]
    near = np.pad(own, ((0, 0), (1, 1), (1, 1)))
    near = near[:, 1:-1] | near[:, :-2] | near[:, 2:]
    near = near[:, :, 1:-1] | near[:, :, :-2] | near[:, :, 2:]
    cut = np.pad(light, ((0, 0), (_CROP, _CROP), (_CROP, _CROP), (0, 0)))[index]
    rays = (_RAYS / _RAYS_SQUARED[:, None])[colour]
    return np.clip(np.einsum("nhwc,nc->nhw", cut, rays), 0, 1) * near, own.sum((1, 2))


def _fit(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the shapes to soft outlines `[N, 20, 20]`: index of the best or -1, and the centroid within the cut."""
    centres = np.arange(_CROP, dtype=np.float32) + 0.5
    area = alpha.sum((1, 2)) + 1e-6
    cx, cy = (alpha.sum(1) * centres).sum(1) / area, (alpha.sum(2) * centres).sum(1) / area
    dx, dy = centres - cx[:, None, None], centres[:, None] - cy[:, None, None]
    size = (area**0.5)[:, None, None]
    residual = np.stack([((alpha - coverage(s, dx, dy, size)) ** 2).sum((1, 2)) / area for s in SHAPES])
    clear = (residual.min(0) < _MAX_RESIDUAL) & (area >= _MIN_AREA)
    return np.where(clear, residual.argmin(0), -1), cx, cy


def grade(scene: Scene, sights: Sequence[Sight], *, symmetric: bool = True) -> tuple[float, float]:
    """Compare what was asked with what was seen.

    strict is 1 when the picture shows exactly the objects asked for, in the relation asked for, and 0 otherwise.
    graded is half a count score, 1 - errors / asked, and half the mean credit of the objects seen: 1 for colour and
    shape, 0.4 for one of the two. A relation is 0.3 of it.

    Args:
        scene: What the caption asks for.
        sights: What the reader found.
        symmetric: Whether one object too many costs what one too few costs. With False the errors are divided by
            asked + extra, so that too many is cheaper; training then learns to draw too many. An empty picture scores
            0 either way.

    Returns:
        strict (0 or 1) and graded (in [0, 1]).
    """
    exact, credit, extra = True, 0.0, 0
    members: list[list[Sight]] = [[] for _ in scene.groups]
    for sight in sights:
        matches = [(sight.colour == group.colour, sight.shape == group.shape) for group in scene.groups]
        # The best match is both; then a colour in common comes before a shape in common.
        best = max(range(len(matches)), key=lambda k: (all(matches[k]), *matches[k]))
        credit += _CREDIT[sum(matches[best])]
        exact &= all(matches[best])
        if any(matches[best]):
            members[best].append(sight)
        else:
            extra += 1
    asked = sum(g.count for g in scene.groups)
    missing = sum(max(0, g.count - len(m)) for g, m in zip(scene.groups, members, strict=True))
    extra += sum(max(0, len(m) - g.count) for g, m in zip(scene.groups, members, strict=True))
    count = max(0.0, 1 - max(missing, extra) / (asked if symmetric else asked + extra))
    graded = 0.5 * count + 0.5 * credit / max(len(sights), 1)
    strict = exact and missing == extra == 0
    if scene.relation is None:
        return float(strict), graded
    held = related(scene.relation, *members, gap=_GAP)
    return float(strict and held), 0.7 * graded + 0.3 * held


def related(relation: str, first: Sequence[Sight], second: Sequence[Sight], *, gap: float) -> bool:
    """Whether every object of `first` is, by at least `gap` pixels, on the named side of every one of `second`."""
    if not first or not second:
        return False
    if relation in ("right of", "below"):
        first, second = second, first
    across = relation in ("left of", "right of")
    ends, begins = ([s.x if across else s.y for s in sights] for sights in (first, second))
    return max(ends) + gap < min(begins)
