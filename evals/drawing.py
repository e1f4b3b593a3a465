"""Draw scenes: the procedural pictures the tiny pipeline learns from, with their captions."""

from __future__ import annotations

import numpy as np

from reward_models.verifiers.scenes import (
    BACKGROUND,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDE,
    Group,
    Scene,
    Sight,
    coverage,
    related,
    split_of,
)

KINDS = {"single": 0.5, "and": 0.2, "relation": 0.3}
_RELATION_GAP = 4.0  # pixels; the reader asks for less, so that a picture is never on the edge of its own caption
_AXIS = np.arange(SIDE, dtype=np.float32) + 0.5
# Half the width, and how far the outline reaches above and below the centroid, of an object of size 1.
_REACH = {"circle": (0.565, 0.565, 0.565), "square": (0.5, 0.5, 0.5), "triangle": (0.76, 0.878, 0.439)}


def sample_scene(rng: np.random.Generator, kind: str | None = None, split: str = "train") -> Scene:
    """Draw a scene whose caption is in `split`; kinds are drawn as `KINDS` says unless one is given.

    At most three objects are asked for.
    """
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    while True:
        groups = tuple(
            Group(int(rng.integers(1, 4 if kind == "single" else 3)), _pick(rng, list(COLOURS)), _pick(rng, SHAPES))
            for _ in range(1 if kind == "single" else 2)
        )
        scene = Scene(groups, _pick(rng, RELATIONS) if kind == "relation" else None)
        if sum(g.count for g in groups) > 3 or len({(g.colour, g.shape) for g in groups}) < len(groups):
            continue
        if split_of(scene) == split:
            return scene


def _pick(rng: np.random.Generator, words: list[str] | tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _place(scene: Scene, rng: np.random.Generator) -> list[tuple[Group, float, float, float]]:
    """Return a (group, x, y, size) for each object: apart from each other, inside the picture, in relation."""
    owners = [g for g in scene.groups for _ in range(g.count)]
    smallest, largest = (6.2, 8.8) if len(owners) < 3 else (5.8, 7.4)
    while True:
        placed: list[tuple[Group, float, float, float]] = []
        boxes: list[tuple[float, float, float, float]] = []
        for owner in owners:
            size = rng.uniform(smallest, largest)
            side, up, down = (size * reach for reach in _REACH[owner.shape])
            x, y = rng.uniform(side + 1, SIDE - side - 1), rng.uniform(up + 1, SIDE - down - 1)
            box = (x - side, x + side, y - up, y + down)
            if any(box[0] < b[1] + 2 and b[0] < box[1] + 2 and box[2] < b[3] + 2 and b[2] < box[3] + 2 for b in boxes):
                break
            placed.append((owner, x, y, size))
            boxes.append(box)
        if len(placed) < len(owners):
            continue
        if scene.relation is None:
            return placed
        first, second = (
            [Sight(o.colour, o.shape, x, y) for o, x, y, _ in placed if o == group] for group in scene.groups
        )
        if related(scene.relation, first, second, gap=_RELATION_GAP):
            return placed


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return a picture of the scene, `[32, 32, 3]` uint8; places, sizes and shades differ from draw to draw."""
    picture = np.full((SIDE, SIDE, 3), BACKGROUND, np.float32) + rng.uniform(-8, 8)
    for owner, x, y, size in _place(scene, rng):
        alpha = coverage(owner.shape, _AXIS - x, _AXIS[:, None] - y, size)[..., None]
        picture += alpha * (np.array(COLOURS[owner.colour]) + rng.uniform(-12, 12, 3) - picture)
    return np.clip(picture, 0, 255).round().astype(np.uint8)


def draw_dataset(count: int, seed: int, split: str = "train") -> tuple[np.ndarray, list[Scene]]:
    """Return `count` pictures `[N, 32, 32, 3]` uint8 and their scenes, all with captions of `split`."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, split=split) for _ in range(count)]
    return np.stack([draw(scene, rng) for scene in scenes]), scenes
