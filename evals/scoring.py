"""Scoring many media with one reward model: in batches of one shape, each picture and prompt once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alignment.data.batches import source_of, sources_of
from alignment.data.clips import KEPT_AT_MOST
from alignment.errors import ConfigError
from evals.medium import FRAMES, Levels, Medium, as_media
from reward_models.base import Loaded, RewardError, RewardModel, load_reward


@dataclass(frozen=True)
class Request:
    """One medium to score.

    Attributes:
        prompt: What it was made for; with a picture in it, rewards see what the medium was made from.
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

PIXELS_AT_ONCE = KEPT_AT_MOST
"""In one call, or one medium that has more; as many wait for others of their shape and rate, then the most go."""

Key = tuple[str, str, str]
"""Prompt, medium, and what was done to the medium."""


def check_alone(model: RewardModel) -> None:
    """Refuse a reward that cannot score a picture by itself.

    Raises:
        ConfigError: If it compares the samples of a group.
    """
    if model.scope != "sample":
        raise ConfigError(
            f"{model} compares the samples of a group; only rewards that score a sample by itself can be measured one "
            "by one"
        )


@dataclass
class BatchScorer:
    """A loaded reward model that scores requests.

    Attributes:
        model: Its description.
        device: Where it runs.
        batch_size: Most media in one call.
        frames: Most frames of a clip.
        known: Scores given so far, by prompt, medium and change of the medium.
        loaded: The model as it is asked.
    """

    model: RewardModel
    device: torch.device
    batch_size: int = 16
    frames: int = FRAMES
    known: dict[Key, MediumScore] = field(default_factory=dict)
    loaded: Loaded = field(init=False)

    def __post_init__(self) -> None:
        check_alone(self.model)
        self.loaded = load_reward(self.model, device=self.device)

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
            alter: What is done to the frames of each first; it keeps their shape.
            name: The name of that change.
            done: Called with the number of requests scored since its last call.

        Raises:
            DataError: If a medium cannot be read.
            RewardError: If the model fails, naming the media.
        """
        keys = [(request.prompt, request.medium.digest, name) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        done(len(keys) - len(missing))
        for batch in self._batches(missing):
            media, prompts = as_media([levels for _, levels in batch], alter), [prompt for (prompt, _, _), _ in batch]
            source = sources_of(prompts, media.pixels)
            media = replace(media, pixels=media.pixels.to(self.device), source=source)
            try:
                with torch.no_grad():
                    rewards = self.loaded(media=media, prompts=prompts)
            except RewardError as error:
                raise RewardError(f"{_called([missing[key].medium.name for key, _ in batch])}: {error}") from error
            columns = {part: column.tolist() for part, column in rewards.parts.items()}
            for row, (score, (key, _)) in enumerate(zip(rewards.value.tolist(), batch, strict=True)):
                self.known[key] = MediumScore(score, {part: column[row] for part, column in columns.items()})
            done(len(batch))
        return [self.known[key] for key in keys]

    def _batches(self, missing: dict[Key, Request]) -> Iterator[list[tuple[Key, Levels]]]:
        """Yield media in batches of one shape and rate, all made from pictures or none.

        What waits for others is bounded by its pixels.
        """
        waiting: dict[tuple[object, ...], list[tuple[Key, Levels]]] = {}
        pixels = 0
        for key, request in missing.items():
            levels = request.medium.levels(self.frames)
            kind = (*levels.kind, source_of(request.prompt) is not None)
            batch = waiting.setdefault(kind, [])
            batch.append((key, levels))
            pixels += levels.size
            if len(batch) == max(1, min(self.batch_size, PIXELS_AT_ONCE // levels.size)):
                most = kind
            elif pixels > PIXELS_AT_ONCE:
                most = max(waiting, key=lambda kind: _pixels(waiting[kind]))
            else:
                continue
            pixels -= _pixels(waiting[most])
            yield waiting.pop(most)
        yield from waiting.values()


def _pixels(batch: Sequence[tuple[Key, Levels]]) -> int:
    return sum(levels.size for _, levels in batch)


def _called(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
