"""Scores that were given before, by content: the same sample, prompt and model are scored once."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import xxhash
from torch import Tensor

from reward_models.base import Loaded, Media, RewardError, RewardModel, Rewards, load_reward, require_reward_model
from reward_models.combinators.inner import AroundAnother
from reward_models.loading.fingerprint import fingerprint

Scores = Mapping[str, float]
"""A sample's value, under "", and its parts."""


@dataclass(frozen=True)
class Cached(AroundAnother):
    """Score with another reward, and remember.

    A score is found again by the bytes, shape and dtype of the sample and of its source, its frame rate, its prompt,
    and the fingerprint of the model: description, weights and code. Samples that could not be scored (NaN) are not
    remembered. Training hardly ever makes a picture twice; evaluations, sweeps and benchmarks do.

    Attributes:
        reward: What scores.
        file: A database kept between runs, which several processes may share; null remembers in memory only.
        entries: Most scores held in memory.
    """

    reward: RewardModel
    file: str | None = None
    entries: int = 100_000

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_reward_model(self.reward)
        if self.reward.scope != "sample":
            raise RewardError(f"cached: {self.reward} scores a sample by its group, so there is no score to remember")
        if self.entries < 1:
            raise RewardError(f"cached: entries has to be at least 1, got {self.entries}")

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what the reward refuses, and a file that cannot be made."""
        super().check(prompts)
        if self.file is not None and not Path(self.file).absolute().parent.is_dir():
            raise RewardError(
                f"cached: there is no folder {Path(self.file).absolute().parent} for the file {self.file}"
            )

    def load(self, *, device: torch.device) -> _CachedScorer:
        """Load the reward and open the file.

        Raises:
            RewardError: If the file is not a database.
        """
        loaded = load_reward(self.reward, device=device)
        disk = None if self.file is None else _Disk(Path(self.file))
        return _CachedScorer(self, loaded, fingerprint(loaded), disk)


@dataclass
class _CachedScorer:
    model: Cached
    loaded: Loaded
    salt: str
    disk: _Disk | None
    memory: OrderedDict[str, Scores] = field(default_factory=OrderedDict)

    @property
    def inner(self) -> tuple[Loaded]:
        """What scores."""
        return (self.loaded,)

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score what is not known yet, each sample once, and answer for all."""
        keys = [self._key(media[row : row + 1], prompt) for row, prompt in enumerate(prompts)]
        known = self._remembered(keys)
        new = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        if new:
            rows = torch.tensor(sorted(new.values()), device=media.pixels.device)
            with torch.no_grad():
                asked = self.loaded(media=media[rows], prompts=[prompts[int(row)] for row in rows])
            columns = {"": asked.value, **asked.parts}
            answers = {
                keys[row]: {name: column[i].item() for name, column in columns.items()}
                for i, row in enumerate(rows.tolist())
            }
            self._remember({key: scores for key, scores in answers.items() if not math.isnan(scores[""])})
            known |= answers
        return _rewards([known[key] for key in keys], media.pixels.device)

    def _key(self, sample: Media, prompt: str) -> str:
        digest = xxhash.xxh3_128(json.dumps([self.salt, prompt, sample.fps]).encode())
        for media in (sample, sample.source):
            if media is not None:
                pixels = media.pixels.detach().cpu().contiguous()
                digest.update(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
                digest.update(pixels.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _remembered(self, keys: Sequence[str]) -> dict[str, Scores]:
        known = {key: self.memory[key] for key in keys if key in self.memory}
        if self.disk is not None:
            found = self.disk.read([key for key in keys if key not in known])
            self._hold(found)
            known |= found
        return known

    def _remember(self, scores: Mapping[str, Scores]) -> None:
        self._hold(scores)
        if self.disk is not None:
            self.disk.write(scores)

    def _hold(self, scores: Mapping[str, Scores]) -> None:
        self.memory.update(scores)
        while len(self.memory) > self.model.entries:
            self.memory.popitem(last=False)


def _rewards(scores: Sequence[Scores], device: torch.device) -> Rewards:
    names = [name for name in scores[0] if name] if scores else []
    columns: dict[str, Tensor] = {
        name: torch.tensor([one[name] for one in scores], dtype=torch.float32, device=device) for name in ("", *names)
    }
    return Rewards(columns[""], {name: columns[name] for name in names})


class _Disk:
    """Scores in an SQLite file: its transactions are whole or not there, whoever is killed."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        try:
            self._file = sqlite3.connect(path, timeout=60, check_same_thread=False)
            with self._file:
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, scores TEXT) WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            raise RewardError(f"cached: {path} cannot be used: {error}; remove it, or name another file") from error

    def read(self, keys: Sequence[str]) -> dict[str, Scores]:
        """Return the scores that are known."""
        found = {}
        with self._lock:
            for key in keys:
                row = self._file.execute("SELECT scores FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = json.loads(row[0])
        return found

    def write(self, scores: Mapping[str, Scores]) -> None:
        """Keep scores."""
        rows = [(key, json.dumps(dict(one))) for key, one in scores.items()]
        try:
            with self._lock, self._file:
                self._file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise RewardError(f"cached: {self._path} cannot be written: {error}") from error
