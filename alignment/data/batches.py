"""The batch types: the joint between a source, which produces one kind, and an objective, which consumes one.

A row is what one row of a pipeline call needs: a prompt and its own random stream. Everything is indexed by row first.
A prompt is a text; one that comes with a picture is a `Prompt`, which is still a text.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from alignment.data.media import Clip, Picture
from reward_models.base import Media, Rewards

Input = str | Picture | Clip
"""What a prompt may bring with it: another text, a picture, or a clip."""


class Prompt(str):
    """A prompt with more than its text: a picture to edit, a first frame, a negative prompt of its own.

    It is a text wherever a text is expected (tokenizers, rewards, captions, JSON). Prompts are equal if their texts and
    their inputs are.

    Attributes:
        inputs: Arguments of the pipeline's `__call__` for this row alone, by name.
    """

    __slots__ = ("inputs",)
    inputs: Mapping[str, Input]

    def __new__(cls, text: str, inputs: Mapping[str, Input]) -> Prompt:
        """Return a prompt; one that brings nothing is a plain text, so `inputs` may not be empty."""
        assert inputs
        prompt = super().__new__(cls, text)
        prompt.inputs = dict(sorted(inputs.items()))
        return prompt

    def __getnewargs__(self) -> tuple[str, dict[str, Input]]:  # type: ignore[override]  # of str, to copy and pickle
        return str(self), dict(self.inputs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompt) and str(self) == str(other) and self.inputs == other.inputs

    def __ne__(self, other: object) -> bool:  # str has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), *self.inputs.items()))


def inputs_of(prompt: str) -> Mapping[str, Input]:
    """Return what a prompt brings beside its text."""
    return prompt.inputs if isinstance(prompt, Prompt) else {}


def made_from(prompts: Sequence[str], pixels: Tensor, fps: float) -> Media:
    """Return samples with what each was made from.

    Args:
        prompts: One per sample.
        pixels: `[n, F, 3, H, W]` in [0, 1].
        fps: Frames per second, where they are clips.
    """
    return Media(pixels, fps=fps if pixels.shape[1] > 1 else None, source=sources_of(prompts, pixels))


def source_of(prompt: str) -> Picture | None:
    """Return the picture that samples of a prompt are made from: its `image`, or else its only picture."""
    pictures = {name: value for name, value in inputs_of(prompt).items() if isinstance(value, Picture)}
    return pictures.get("image", next(iter(pictures.values())) if len(pictures) == 1 else None)


def sources_of(prompts: Sequence[str], pixels: Tensor) -> Media | None:
    """Return the pictures that samples `[n, F, 3, H, W]` were made from, at their size; None where there are none."""
    height, width = pixels.shape[-2:]
    sources = [source.pixels(width, height) for source in map(source_of, prompts) if source is not None]
    return Media(torch.stack(sources)[:, None], fps=None) if sources else None


@dataclass(frozen=True)
class Example:
    """What a record of a data file holds to learn from, beside its prompt.

    Attributes:
        media: A winner; or the sample that was chosen, and the one that was rejected.
        label: How much the first one is wanted: 1, or below 0 where it is not wanted; None where the record has no
            label.
    """

    media: tuple[Picture | Clip, ...]
    label: float | None = None


@dataclass(frozen=True)
class Groups:
    """The prompts of one step, before anything is sampled.

    Attributes:
        prompts: One text per group.
        ids: `[P]` int64, unique over the run; given by the position in the data, never by the text.
        examples: One per prompt, for sources that learn from samples of a data file; empty for the others.
        offset: Position of the first of them among all prompts of the step.
    """

    prompts: tuple[str, ...]
    ids: Tensor
    examples: tuple[Example, ...] = ()
    offset: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Groups:
        first = range(len(self))[rows].start
        return Groups(self.prompts[rows], self.ids[rows], self.examples[rows], self.offset + first)

    def calls(self, size: int | None) -> list[tuple[int, Groups]]:
        """Return the pipeline calls of these prompts, each with its number among those of the step.

        They are cut where one process would cut them all, so that a call has its number, and what is drawn by that, on
        any number of processes. One that holds only a part of the prompts of a call makes that part.

        Args:
            size: Prompts in a call; None: all of the step.
        """
        if size is None:
            return [(0, self)]
        numbers = [(self.offset + position) // size for position in range(len(self))]
        edges = [0, *(at for at in range(1, len(self)) if numbers[at] != numbers[at - 1]), len(self)]
        return [(numbers[start], self[start:end]) for start, end in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Batch:
    """Rows of experience.

    Attributes:
        prompts: One text per row.
        seeds: `[n]` int64, the key of each row's random stream: the pipeline draws its initial noise from it again.
        group: `[n]` int64, rows with the same id compete with each other.
        chunk: `[n]` int64, which rows may share a pass: those of one pipeline call, or of several where their trained
            steps are the same. Rows of two chunks never share a microbatch.
    """

    prompts: tuple[str, ...]
    seeds: Tensor
    group: Tensor
    chunk: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self: B, rows: Tensor) -> B:
        """Return the rows named by the integer tensor `rows`."""
        picked: dict[str, object] = {"prompts": tuple(self.prompts[i] for i in rows.tolist())}
        for name in (f.name for f in fields(self) if f.name != "prompts"):
            picked[name] = getattr(self, name)[rows]
        return replace(self, **picked)  # type: ignore[arg-type]  # fields of this very class

    def to(self: B, device: torch.device) -> B:
        """Return the batch with its tensors on `device`."""
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "prompts"}
        return replace(self, **tensors)


B = TypeVar("B", bound=Batch)


def concatenate(batches: list[B]) -> B:
    """Join batches of one kind, in order, along their rows."""
    first = batches[0]
    joined: dict[str, object] = {"prompts": tuple(text for batch in batches for text in batch.prompts)}
    for name in (f.name for f in fields(first) if f.name != "prompts"):
        joined[name] = torch.cat([getattr(batch, name) for batch in batches])
    return replace(first, **joined)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Starts(Batch):
    """Prompts and seeds only, for objectives that sample with gradient themselves."""


@dataclass(frozen=True)
class Samples(Batch):
    """Clean samples with credit, for forward-process objectives.

    Attributes:
        x0: `[n, *latent]` float32.
        advantage: `[n]` float32.
    """

    x0: Tensor
    advantage: Tensor


@dataclass(frozen=True)
class Pairs(Batch):
    """Two clean samples of each prompt, one of them preferred.

    Attributes:
        chosen: `[n, *latent]` float32.
        rejected: `[n, *latent]` float32.
        advantage: `[n]` float32, how much `chosen` is preferred: 1 for a plain preference, 0 for none, negative where
            `rejected` is.
    """

    chosen: Tensor
    rejected: Tensor
    advantage: Tensor

    @property
    def x0(self) -> Tensor:
        """One clean sample of each row."""
        return self.chosen


@dataclass(frozen=True)
class Transitions(Batch):
    """Denoising transitions with credit, for reverse-process objectives.

    K steps are trained in each row, and A actions were drawn from each state. A = 1 when every sample has a path of its
    own. In branch mode a whole group leaves one state, so a row is a group and A is its size: the denoiser then runs
    once for all of them, forward and backward, which is exact because they share the state.

    Attributes:
        index: `[n, K]` int64, the round of the pipeline's loop.
        x: `[n, K, *latent]` float32, as the pipeline held it.
        x_next: `[n, K, A, *latent]` float32, after rounding to the dtype the pipeline was handed.
        model_output: `[n, K, *latent]` float32, the model output that drew the actions.
        coefficients: `[n, K, 3]` float32: (a, b, std) of the step taken; `[n, K, 1, *latent, 3]` where elements of a
            state have times of their own (several streams, tokens), in shapes that broadcast against it.
        advantage: `[n, A]` float32, or `[n, A, *map]` with a map that broadcasts against the latent.
        mean_std: `[n]` float32, the mean std of all steps that may be trained, not only of these.
    """

    index: Tensor
    x: Tensor
    x_next: Tensor
    model_output: Tensor
    coefficients: Tensor
    advantage: Tensor
    mean_std: Tensor

    @property
    def actions(self) -> int:
        """Actions drawn from each state."""
        return self.x_next.shape[2]


def one_of_each_state(batch: Transitions) -> tuple[Tensor, Tensor]:
    """Return (one row of each first state, which of them each row follows); neighbours are compared."""
    x = batch.x[:, 0].flatten(1)
    new = torch.ones(len(batch), dtype=torch.bool, device=x.device)
    new[1:] = (batch.seeds[1:] != batch.seeds[:-1]) | (x[1:] != x[:-1]).any(dim=1)
    return new.nonzero().flatten(), new.cumsum(0) - 1


B_co = TypeVar("B_co", bound=Batch, covariant=True)


@dataclass(frozen=True)
class Experience(Generic[B_co]):
    """What a source passes to the loop: a typed batch, and what is shown of it.

    Attributes:
        batch: The rows to learn from.
        metrics: Numbers for the record, already the same on every process.
        media: Pixels of this process's samples, on the CPU. Empty where the objective makes the samples; only the first
            ones where they come from a file.
        prompts: One text per sample.
        rewards: Scores of the samples; their labels, where they come from a file.
        seconds: Time spent, by name.
        maps: `[B, frames, height, width]`, where in each sample its credit went; None where all of it was given
            everywhere.
    """

    batch: B_co
    metrics: Mapping[str, float]
    media: Media
    prompts: tuple[str, ...]
    rewards: Rewards
    seconds: Mapping[str, float] = field(default_factory=dict)
    maps: Tensor | None = None
