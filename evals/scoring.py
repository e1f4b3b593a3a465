"""Scoring many media with one reward model: in batches of one shape, each picture and prompt once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

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
        medium: The picture or clip.
    """

    prompt: str
    medium: Medium


@dataclass(frozen=True)
class MediumScore:
    """The score of one medium.

    Attributes:
        score: The score; NaN where there is none.
        parts: What it is made of, by name; NaN where there is none.
    """

    score: float
    parts: dict[str, float]


_NAMED = 3
"""How many media a message names."""

_WAITING = 4
"""Batches of media that may wait for others of their shape and rate; then the fullest goes as it is."""

Key = tuple[str, str, str]
"""Prompt, medium, and what was done to the medium."""


@dataclass
class BatchScorer:
    """A loaded reward model that scores requests.

    Attributes:
        model: Its description.
        device: Where it runs.
        batch_size: Most media in one call.
        frames: Most frames of a clip.
        known: Scores given so far, by prompt, medium and change of the medium.
    """

    model: RewardModel
    device: torch.device
    batch_size: int = 16
    frames: int = FRAMES
    known: dict[Key, MediumScore] = field(default_factory=dict)

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
    ) -> list[MediumScore]:
        """Return score and parts of each request.

        Args:
            requests: What to score; repetitions are scored once.
            alter: What is done to the frames first.
            name: The name of that change.
            done: Called with the number of requests scored since its last call.

        Raises:
            DataError: If a medium cannot be read.
            RewardError: If the model fails, naming the media.
        """
        keys = [(request.prompt, request.medium.digest, name) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        done(len(keys) - len(missing))
        for batch in self._batches(missing, alter):
            pixels = torch.cat([media.pixels for _, media in batch]).to(self.device)
            media = Media(pixels, fps=batch[0][1].fps)
            try:
                with torch.no_grad():
                    rewards = self._loaded(media=media, prompts=[prompt for (prompt, _, _), _ in batch])
            except RewardError as error:
                raise RewardError(f"{_called([missing[key].medium.name for key, _ in batch])}: {error}") from error
            columns = {part: column.tolist() for part, column in rewards.parts.items()}
            for row, (score, (key, _)) in enumerate(zip(rewards.value.tolist(), batch, strict=True)):
                self.known[key] = MediumScore(score, {part: column[row] for part, column in columns.items()})
            done(len(batch))
        return [self.known[key] for key in keys]

    def _batches(
        self, missing: dict[Key, Request], alter: Callable[[Tensor], Tensor] | None
    ) -> Iterator[list[tuple[Key, Media]]]:
        """Yield media in batches of one shape and rate."""
        waiting: dict[tuple[torch.Size, float | None], list[tuple[Key, Media]]] = {}
        for key, request in missing.items():
            media = request.medium.media(self.frames)
            media = media if alter is None else replace(media, pixels=alter(media.pixels[0])[None])
            batch = waiting.setdefault((media.pixels.shape, media.fps), [])
            batch.append((key, media))
            if len(batch) == self.batch_size or sum(map(len, waiting.values())) > _WAITING * self.batch_size:
                yield waiting.pop(max(waiting, key=lambda kind: len(waiting[kind])))
        yield from waiting.values()


def _called(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
