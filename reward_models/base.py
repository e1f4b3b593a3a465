"""What a reward is: the types every scorer shares.

Conventions: pixels are float in [0, 1]; a picture is a clip of one frame; larger is better; scores are
float32; the score of a batch is the scores of its rows, or of its groups where a model compares within groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from reward_models.errors import RewardError, ScorersCode
from reward_models.foreign import globals_kept

Scope = Literal["sample", "group"]
"""What a score depends on: the sample alone, or the samples it is compared with."""


@dataclass(frozen=True)
class Media:
    """Pictures or clips as the pipeline made them.

    Attributes:
        pixels: `[B, F, 3, H, W]` in [0, 1]; F = 1 for pictures.
        fps: Frames per second of a clip; None for pictures.
        source: What each row was made from, B rows of any size: the picture that was edited, the first frame of a
            clip. None where there was only text.
    """

    pixels: Tensor
    fps: float | None = None
    source: Media | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 5 or self.pixels.shape[2] != 3:
            raise RewardError(f"media need pixels [B, F, 3, H, W], got {tuple(self.pixels.shape)}")
        if self.source is not None and len(self.source) != len(self):
            raise RewardError(f"{len(self)} samples were made from {len(self.source)} sources; give one per sample")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Media:
        source = None if self.source is None else self.source[rows]
        return replace(self, pixels=self.pixels[rows], source=source)

    def copy(self) -> Media:
        """Return the same samples in memory of their own; gradients still reach these."""
        source = None if self.source is None else self.source.copy()
        return replace(self, pixels=self.pixels.clone(), source=source)


@dataclass(frozen=True)
class Rewards:
    """Scores of a batch.

    Attributes:
        value: `[B]` float32. NaN marks a sample that could not be scored: credit leaves it out and counts it; it is
            never given a number in place of a score.
        parts: The named scores `value` was made of, each `[B]`: for curves, and for advantages over several rewards.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, score in {"value": self.value, **self.parts}.items():
            if score.ndim != 1 or score.shape != self.value.shape or score.dtype != torch.float32:
                raise RewardError(
                    f"a reward is a float32 vector, one number per sample: {name} is {score.dtype} {tuple(score.shape)}"
                )
            if torch.isinf(score).any():
                raise RewardError(
                    f"{name} has infinite scores at rows {torch.isinf(score).nonzero().flatten().tolist()}"
                )

    def __getitem__(self, rows: slice | Tensor) -> Rewards:
        return Rewards(self.value[rows], {name: part[rows] for name, part in self.parts.items()})


@runtime_checkable
class Scorer(Protocol):
    """A loaded reward model that scores each sample by itself."""

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; `prompts` has one text per row."""
        ...


@runtime_checkable
class GroupScorer(Protocol):
    """A loaded reward model that compares the samples of a group with each other."""

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor) -> Rewards:
        """Score `media` within its groups.

        The scores of a group depend on nothing but its own samples: not on other groups of the batch, nor on the
        order of the rows.

        Args:
            media: Whole groups, in any order.
            prompts: One text per row, the same within a group.
            group: `[B]` int64; rows with the same id are compared.
        """
        ...


@dataclass(frozen=True)
class KnownAnswer:
    """Samples whose scores are known well enough to check that a reward model works.

    Attributes:
        says: The expectation in words: "a red picture is redder than a blue one".
        media: A few samples; to a model that compares, they are one group.
        prompts: One text per sample.
        bands: (lowest, highest) score of each sample; empty where only the order is known.
        best_first: Whether each sample's score has to be above the next one's.
    """

    says: str
    media: Media
    prompts: tuple[str, ...]
    bands: tuple[tuple[float, float], ...] = ()
    best_first: bool = False

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.media) or len(self.bands) not in (0, len(self.media)):
            raise RewardError(
                f"known answer '{self.says}': {len(self.media)} samples, {len(self.prompts)} prompts and "
                f"{len(self.bands)} bands do not fit"
            )

    def check(self, value: Tensor) -> None:
        """Refuse scores `[B]` that are not the known ones.

        Raises:
            RewardError: Naming the sample, its score and the expected one.
        """
        got = value.tolist()
        for row, (low, high) in enumerate(self.bands):
            if not low <= got[row] <= high:
                raise RewardError(
                    f"known answer '{self.says}': sample {row} scores {got[row]:g}, expected {low:g} to {high:g}"
                )
        for row in range(len(got) - 1 if self.best_first else 0):
            if not got[row] > got[row + 1]:
                raise RewardError(
                    f"known answer '{self.says}': sample {row} scores {got[row]:g}, which should be above the "
                    f"{got[row + 1]:g} of sample {row + 1}"
                )


@dataclass(frozen=True)
class Size:
    """How large a reward model is, for plans; zeros where it has no network.

    Attributes:
        bytes: Of its weights.
        flops: Of scoring one frame, its share of the prompt included.
    """

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Size) -> Size:
        return Size(self.bytes + other.bytes, self.flops + other.flops)


@runtime_checkable
class RewardModel(Protocol):
    """A light, frozen description of a reward model; `load` makes the heavy object.

    The file `reward_models/NAME.py` holds the class that a config calls `type: NAME`. Inherit from this class and
    override what the model knows.
    """

    home: ClassVar[str] = "reward_models"
    differentiable: ClassVar[bool]
    scope: ClassVar[Scope] = "sample"

    def load(self, *, device: torch.device) -> Scorer | GroupScorer:
        """Return the scorer on `device`: a `GroupScorer` if and only if `scope` is "group"."""
        ...

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is loaded; nothing by default.

        Args:
            prompts: Texts that will be scored; empty to check the description alone.

        Raises:
            RewardError: Naming what cannot be scored.
        """

    def size(self) -> Size | None:
        """Return how large it is, before it is loaded; None where that is not known."""
        return None

    def part_names(self) -> tuple[str, ...] | None:
        """Return the names of the parts of its scores, before it is loaded; None where they are not known.

        A part of a part ("name/part") may be left out.
        """
        return None

    def right_or_wrong(self) -> tuple[str, ...]:
        """Return which scores of a picture are 0 or 1 and nothing else: "" the score itself, or a part's name.

        Means of these are shares, of which all or none may be right by chance. None by default.
        """
        return ()

    def reads_prompts(self) -> bool:
        """Return whether a prompt has a say in a score; yes, unless a model says that it looks at the sample alone."""
        return True

    def waits(self) -> bool:
        """Return whether another process does the work, so that the cores of this one are free; False by default."""
        return False

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return samples with known scores, for a check before training; none by default."""
        return ()

    def __str__(self) -> str:
        """Return the name under which messages speak of it."""
        return type(self).__name__


@runtime_checkable
class PairwiseJudge(Protocol):
    """A light, frozen description of what decides which of two samples is better; `load` makes the heavy object.

    The file `reward_models/judges/NAME.py` holds the class that a config calls `type: NAME`; `type: win_rate` makes a
    reward of it.
    """

    home: ClassVar[str] = "reward_models.judges"

    def load(self, *, device: torch.device) -> Comparer:
        """Return the loaded judge on `device`."""
        ...

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what cannot work, before anything is loaded, as `RewardModel.check` does."""

    def waits(self) -> bool:
        """Return whether another process does the work, as `RewardModel.waits` does."""
        return False

    def asks_people(self) -> bool:
        """Return whether people are what judges; no, unless a judge says so."""
        return False

    def __str__(self) -> str:
        """Return the name under which messages speak of it."""
        return type(self).__name__


@runtime_checkable
class Comparer(Protocol):
    """A loaded pairwise judge."""

    def __call__(self, *, first: Media, second: Media, prompts: Sequence[str]) -> Tensor:
        """Return the probability that `first` is better, `[B]` float32 in [0, 1], row by row.

        0.5 is a tie; NaN means that the two could not be compared. The caller asks a judge that favours the first
        sample in both orders.
        """
        ...


@runtime_checkable
class Composite(Protocol):
    """A loaded reward model that is made of others."""

    @property
    def inner(self) -> Sequence[Loaded]:
        """The models it asks."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A loaded reward model whose inputs and scores are checked.

    All scoring goes through it: it passes groups to the models that compare, and only to those.
    """

    model: RewardModel
    scorer: Scorer | GroupScorer

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        """Score `media`.

        Args:
            media: The samples.
            prompts: One text per sample.
            group: `[B]` int64, whole groups; needed where the model compares within groups.

        Raises:
            RewardError: If prompts or groups are missing, the scorer breaks down, or its answer is not one score a
                sample.
        """
        if len(prompts) != len(media):
            raise RewardError(f"{self.model} was asked about {len(media)} samples with {len(prompts)} prompts")
        if self.model.scope == "group" and (group is None or len(group) != len(media)):
            raise RewardError(f"{self.model} compares samples of a group, so it needs the group of each: group=[B]")
        with globals_kept(self.model), ScorersCode(self.model, (OSError, RuntimeError, ValueError)):
            rewards = self._ask(media, tuple(prompts), group)
        if not isinstance(rewards, Rewards):
            raise RewardError(f"{self.model} answered with a {type(rewards).__name__}, expected Rewards")
        if len(rewards.value) != len(media):
            raise RewardError(
                f"{self.model} gave {len(rewards.value)} scores for {len(media)} samples; one per sample is needed"
            )
        return rewards

    @property
    def _leaves_pixels_alone(self) -> bool:
        """Whether the model is of this package, whose laws keep it; a stranger's model gets a copy of its own."""
        return type(self.model).__module__.partition(".")[0] == __name__.partition(".")[0]

    def _ask(self, media: Media, prompts: Sequence[str], group: Tensor | None) -> object:
        if not self._leaves_pixels_alone:
            media, group = media.copy(), None if group is None else group.clone()
        if self.model.scope == "sample":
            return cast(Scorer, self.scorer)(media=media, prompts=prompts)
        assert group is not None
        return cast(GroupScorer, self.scorer)(media=media, prompts=prompts, group=group)

    def examine(self) -> list[KnownAnswer]:
        """Score the known answers of this model and of those it is made of, and return them.

        Raises:
            RewardError: If a score is not the known one.
        """
        asked = list(self.model.known_answers())
        for answer in asked:
            group = torch.zeros(len(answer.media), dtype=torch.int64)
            value = self(media=answer.media, prompts=answer.prompts, group=group).value
            try:
                answer.check(value)
            except RewardError as error:
                raise RewardError(f"{self.model} does not give its known answers: {error}") from error
        if isinstance(self.scorer, Composite):
            asked += [answer for loaded in self.scorer.inner for answer in loaded.examine()]
        return asked


def load_reward(model: RewardModel, *, device: torch.device) -> Loaded:
    """Return a reward model, loaded, as every caller should use it.

    Raises:
        RewardError: If this is not a reward model, or cannot be loaded.
    """
    require_reward_model(model)
    with globals_kept(model), ScorersCode(model):
        scorer = model.load(device=device)
    return Loaded(model, scorer)


def require_reward_model(model: object) -> None:
    """Refuse what is not a reward model.

    Raises:
        RewardError: Naming what it lacks.
    """
    needed = ("load", "differentiable", "scope", "check", "known_answers", "size", "part_names", "waits")
    if lacking := [name for name in needed if not hasattr(model, name)]:
        raise RewardError(
            f"{type(model).__name__} is not a reward model: it lacks {', '.join(lacking)}; inherit from "
            "reward_models.base.RewardModel, which has all but load and differentiable"
        )
