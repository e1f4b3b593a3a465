"""GenEval's language and its verdicts: what a prompt asks to be in a picture, and whether it was found there.

Source: GenEval (arXiv 2310.11513) and its evaluation code (MIT) for `correct`; the reward server of Flow-GRPO
(arXiv 2505.05470) for `strict` and `dense`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO, in its order, under GenEval's names."""

_NUMBERS = {"two": 2, "three": 3, "four": 4}
_RELATIONS = ("left of", "right of", "above", "below")

_DEAD_ZONE = 0.1
"""Part of two objects' sizes by which their centres may differ and be nowhere in particular."""
_SIDEWAYS = 0.5
"""Part of the offset that has to lie along a direction."""


@dataclass(frozen=True)
class Clause:
    """What is asked for.

    Attributes:
        kind: One of `OBJECTS`.
        count: How many.
        colour: One of `COLOURS`; None for any.
        relation: (direction, number of the clause it is relative to); None for anywhere.
    """

    kind: str
    count: int = 1
    colour: str | None = None
    relation: tuple[str, int] | None = None


@dataclass(frozen=True)
class Wish:
    """What a prompt asks for.

    Attributes:
        include: All of these.
        exclude: None of these: fewer than `count` of a kind.
    """

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def counting(self) -> bool:
        """Whether the exact number matters; only sure detections count then."""
        return bool(self.exclude)


@dataclass(frozen=True)
class PictureGrade:
    """Of one picture.

    Attributes:
        correct: GenEval's own: at least as many as asked, the surest of them right.
        strict: Exactly as many as asked, all of them right.
        dense: The mean over counts, colours and relations of how right each is, in [0, 1] where no count is more
            than twice what was asked for. As in its source, a wrong relation counts as half right.
    """

    correct: bool
    strict: bool
    dense: float


Box = Sequence[float]
"""(left, top, right, bottom), in pixels."""

ColoursOf = Callable[[str, int], Sequence[str]]
"""colours_of(kind, n): the colours of the n surest objects of a kind."""


def parse(prompt: str) -> Wish:
    """Return what a prompt of GenEval asks for.

    Raises:
        ValueError: If it is not one.
    """
    words = " ".join(prompt.lower().split()).rstrip(".")
    if not words.startswith("a photo of "):
        raise ValueError(f"it begins with 'a photo of', got {prompt!r}")
    rest = words.removeprefix("a photo of ")
    number, _, plural = rest.partition(" ")
    if number in _NUMBERS:
        kind, count = _singular(plural, prompt), _NUMBERS[number]
        return Wish((Clause(kind, count),), (Clause(kind, count + 1),))
    for relation in _RELATIONS:
        first, found, second = rest.partition(f" {relation} ")
        if found:
            return Wish((_thing(second, prompt), Clause(_thing(first, prompt).kind, relation=(relation, 0))))
    return Wish(tuple(_thing(part, prompt) for part in rest.split(" and ")))


def _thing(words: str, prompt: str) -> Clause:
    article = re.fullmatch(r"an? (.+)", words)
    name = article[1] if article else words
    if name in OBJECTS:
        return Clause(name)
    colour, _, kind = name.partition(" ")
    if colour in COLOURS and kind in OBJECTS:
        return Clause(kind, colour=colour)
    raise ValueError(f"{name!r} is none of the objects that can be found, in {prompt!r}")


def _singular(plural: str, prompt: str) -> str:
    for kind in OBJECTS:
        if plural in (kind, f"{kind}s", f"{kind}es", f"{kind[:-1]}ies", f"{kind[:-2]}ves"):
            return kind
    raise ValueError(f"{plural!r} are none of the objects that can be found, in {prompt!r}")


def judge(wish: Wish, boxes: Mapping[str, Sequence[Box]], colours_of: ColoursOf) -> PictureGrade:
    """Return the verdict on a picture.

    Args:
        wish: What was asked for.
        boxes: What was found, by kind, surest first.
        colours_of: Looks at the colours of what was found.
    """
    correct = _correct(wish, boxes, colours_of)
    strict, grades = _graded(wish, boxes, colours_of)
    return PictureGrade(correct, strict, sum(grades) / len(grades))


def _correct(wish: Wish, boxes: Mapping[str, Sequence[Box]], colours_of: ColoursOf) -> bool:
    groups: list[Sequence[Box] | None] = []
    for clause in wish.include:
        found = boxes.get(clause.kind, ())[: clause.count]
        right = len(found) == clause.count
        if right and clause.colour is not None:
            right = list(colours_of(clause.kind, clause.count)).count(clause.colour) == clause.count
        if right and clause.relation is not None:
            right = _related(found, groups[clause.relation[1]], clause.relation[0])
        groups.append(found if right else None)
    return None not in groups and all(len(boxes.get(bad.kind, ())) < bad.count for bad in wish.exclude)


def _graded(wish: Wish, boxes: Mapping[str, Sequence[Box]], colours_of: ColoursOf) -> tuple[bool, list[float]]:
    groups: list[Sequence[Box] | None] = []
    grades: list[float] = []
    for clause in wish.include:
        found = boxes.get(clause.kind, ())
        right = len(found) == clause.count
        grades.append(_nearness(len(found), clause.count))
        if not right and (clause.colour or clause.relation):
            grades.append(0.0)
        if right and clause.colour is not None:
            coloured = list(colours_of(clause.kind, clause.count)).count(clause.colour)
            grades.append(_nearness(coloured, clause.count))
            right = coloured == clause.count
        if right and clause.relation is not None:
            targets = groups[clause.relation[1]]
            right = _related(found, targets, clause.relation[0])
            grades += [1.0] if right else [0.0] if targets is None else [0.0, 1.0]
        groups.append(found if right else None)
    return None not in groups, grades


def _nearness(got: int, wanted: int) -> float:
    return 1 - abs(wanted - got) / wanted


def _related(found: Sequence[Box], targets: Sequence[Box] | None, relation: str) -> bool:
    return targets is not None and all(relation in relations(box, other) for box in found for other in targets)


def relations(box: Box, other: Box) -> set[str]:
    """Return where `box` lies as seen from `other`: some of "left of", "right of", "above", "below"."""
    offset, beyond = [], []
    for low, high in ((0, 2), (1, 3)):
        away = (box[low] + box[high]) / 2 - (other[low] + other[high]) / 2
        slack = _DEAD_ZONE * (abs(box[high] - box[low]) + abs(other[high] - other[low]))
        offset.append(away)
        beyond.append(max(abs(away) - slack, 0) * (1 if away > 0 else -1))
    if all(abs(value) < 1e-3 for value in beyond):
        return set()
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    across, down = (value / length for value in beyond)
    holds = (across < -_SIDEWAYS, across > _SIDEWAYS, down < -_SIDEWAYS, down > _SIDEWAYS)
    return {relation for relation, true in zip(_RELATIONS, holds, strict=True) if true}
