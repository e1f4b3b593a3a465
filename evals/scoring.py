"""Scoring many media with one reward model: in batches of one shape, each picture and prompt once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignment.errors import ConfigError
from evals.medium import FRAMES, Medium
from reward_models.base import Loaded, Media, RewardError, RewardModel


@dataclass(frozen=True)
class Request:
    """One medium to score.

    Attributes:
        prompt: What it was made for.
        medium: It.
    """

    prompt: str
    medium: Medium


@dataclass(frozen=True)
class Verdict:
    """What a reward said of one medium.

    Attributes:
        score: The score; NaN where there is none.
        parts: What it is made of, by name; NaN where there is none.
    """

    score: float
    parts: dict[str, float]


_NAMED = 3
"""How many media a message names."""


@dataclass
class Judge:
    """A loaded reward model that scores requests.

    Attributes:
        model: Its description.
        device: Where it runs.
        batch_size: Most media in one call.
        frames: Most frames of a clip.
        known: What it has said, by prompt, medium and what was done to the medium.
    """

    model: RewardModel
    device: torch.device
    batch_size: int = 16
    frames: int = FRAMES
    known: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model.scope != "sample":
            raise ConfigError(
                f"{self.model} compares the samples of a group; only rewards that score a sample by itself can be "
                "measured one by one"
            )
        self._loaded = Loaded(self.model, self.model.load(device=self.device))

    def scores(
        self,
        requests: Sequence[Request],
        alter: Callable[[Tensor], Tensor] | None = None,
        name: str = "",
        done: Callable[[int], None] = lambda count: None,
    ) -> list[float]:
        """Return the score of each request, NaN where there is none; arguments and errors are those of `verdicts`."""
        return [verdict.score for verdict in self.verdicts(requests, alter, name, done)]

    def verdicts(
        self,
        requests: Sequence[Request],
        alter: Callable[[Tensor], Tensor] | None = None,
        name: str = "",
        done: Callable[[int], None] = lambda count: None,
    ) -> list[Verdict]:
        """Return what the reward says of each request.

        Args:
            requests: What to score; repetitions are scored once.
            alter: What is done to the frames first.
            name: What that is called.
            done: Told how many requests have been scored since it was last told.

        Raises:
            DataError: If a medium cannot be read.
            RewardError: If the model fails, naming the media.
        """
        keys = [(request.prompt, request.medium.digest, name) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        done(len(keys) - len(missing))
        for batch in self._batches(missing, alter):
            media = Media(torch.stack([pixels for _, pixels in batch]).to(self.device))
            try:
                with torch.no_grad():
                    rewards = self._loaded(media=media, prompts=[prompt for (prompt, _, _), _ in batch])
            except RewardError as error:
                raise RewardError(f"{_called([missing[key].medium.name for key, _ in batch])}: {error}") from error
            columns = {part: column.tolist() for part, column in rewards.parts.items()}
            for row, (score, (key, _)) in enumerate(zip(rewards.value.tolist(), batch, strict=True)):
                self.known[key] = Verdict(score, {part: column[row] for part, column in columns.items()})
            done(len(batch))
        return [self.known[key] for key in keys]

    def _batches(
        self, missing: dict[tuple[str, str, str], Request], alter: Callable[[Tensor], Tensor] | None
    ) -> Iterator[list[tuple[tuple[str, str, str], Tensor]]]:
        """Yield (key, frames) in batches of one shape; at most one unfinished batch of each shape is in memory."""
        waiting: dict[torch.Size, list[tuple[tuple[str, str, str], Tensor]]] = {}
        for key, request in missing.items():
            pixels = request.medium.pixels(self.frames)
            pixels = pixels if alter is None else alter(pixels)
            batch = waiting.setdefault(pixels.shape, [])
            batch.append((key, pixels))
            if len(batch) == self.batch_size:
                yield waiting.pop(pixels.shape)
        yield from waiting.values()


def _called(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def mean_finite(values: Sequence[float]) -> float:
    """Return the mean of what is not NaN; NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
