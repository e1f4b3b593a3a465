"""A run that is looked at before it is trained: its reward answers by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from alignment.config.load import load
from alignment.config.run import Run
from alignment.errors import ConfigError
from reward_models.base import PairwiseJudge


def load_scored(path: str, overrides: Sequence[str], command: str) -> Run:
    """Load a run's config for a command that asks its reward a few times and throws the answers away.

    Raises:
        ConfigError: If it cannot be loaded; if people are its reward, who would be asked for nothing.
    """
    run = load(path, overrides)
    for key, reward in {"source.reward": run.source, "evaluation.reward": run.evaluation.reward}.items():
        if asks_people(reward):
            raise ConfigError(
                f"{key} asks people for votes, and {command} would wait for them to judge pictures that are thrown "
                f"away; give another reward in its place, such as {key}={{type: clip}}"
            )
    return run


def asks_people(part: object) -> bool:
    """Return whether something is, or holds anywhere within it, a judge that asks people."""
    if isinstance(part, PairwiseJudge):
        return part.asks_people()
    if isinstance(part, Mapping):
        return any(map(asks_people, part.values()))
    if isinstance(part, tuple):
        return any(map(asks_people, part))
    if dataclasses.is_dataclass(part):
        return any(asks_people(value) for value in vars(part).values())
    return False
