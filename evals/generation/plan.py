"""What a comparison is: subjects, suites, what looks at the pictures, and how they are made."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from alignment import __version__
from alignment.config import build
from alignment.data.batches import inputs_of
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, DataError
from alignment.features.base import Extractor
from evals.generation.shelf import Row, Shelf, Unit, units, write
from evals.generation.subjects import REFERENCE, Candidate, Dtype
from evals.scoring import check_alone
from evals.suites.base import Item, Suite
from reward_models.base import RewardError, RewardModel

PROTOCOL = "protocol.json"


@dataclass(frozen=True)
class Share:
    """This process's part of the work.

    Attributes:
        rank: Index of this process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def launched(cls) -> Share:
        """Return the part that torchrun, accelerate or a cluster's script gives this process."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def takes(self, unit: Unit) -> bool:
        """Whether a unit is this process's: the same whether it is made, scored or looked at."""
        return unit.number % self.size == self.rank


@dataclass(frozen=True)
class Making:
    """How pictures are made.

    Attributes:
        seed: Of their noise; equal seeds give equal noise for every subject.
        pictures: Pictures per prompt; None for what each suite asks for.
        limit: Prompts of each suite, from the first on; None for all.
        batch_size: Pictures in one pipeline call, and in a unit.
        call: Arguments of the pipeline's `__call__`, the same for every subject.
        dtype: Of the weights.
        autocast: What networks compute in, where that is another.
    """

    seed: int = 0
    pictures: int | None = None
    limit: int | None = None
    batch_size: int = 64
    call: Mapping[str, object] = field(default_factory=dict)
    dtype: Dtype = "float32"
    autocast: Literal["bfloat16", "float16"] | None = None


@dataclass(frozen=True)
class EvalPlan:
    """A whole comparison.

    Attributes:
        subjects: What is compared, the one that the others are compared with first.
        suites: On what, by name.
        rewards: What scores, by title; empty for what each suite brings.
        extractors: What makes features, by title.
        making: How pictures are made.
        output: Folder of all of it.
        references: Pictures as they should be that fidelity is measured against, for each suite.
        real: A folder of such pictures; None for those that a suite makes, if it does.
        device: Where networks run.
    """

    subjects: tuple[Candidate, ...]
    suites: Mapping[str, Suite]
    rewards: Mapping[str, RewardModel]
    extractors: Mapping[str, Extractor]
    making: Making
    output: Path
    references: int = 1000
    real: Path | None = None
    device: torch.device = torch.device("cpu")

    @functools.cached_property
    def items(self) -> Mapping[str, Sequence[Item]]:
        """The prompts of each suite.

        Raises:
            ConfigError: If a reward cannot score pictures one by one.
            DataError: If a suite cannot be read, or a reward cannot judge its prompts.
        """
        found = {name: suite.items()[: self.making.limit] for name, suite in self.suites.items()}
        for name, items in found.items():
            if not items:
                raise DataError(f"{name} has no prompts")
            for title, model in self.rewards_of(name).items():
                check_alone(model)
                try:
                    model.check(tuple(dict.fromkeys(item.prompt for item in items)))
                except RewardError as error:
                    raise DataError(f"{title} cannot judge the prompts of {name}: {error}") from error
        return found

    def rewards_of(self, suite: str) -> Mapping[str, RewardModel]:
        """Return what scores the pictures of a suite, by title."""
        return self.rewards or self.suites[suite].rewards()

    def right_or_wrong(self, suite: str) -> frozenset[str]:
        """Return the scores of a suite's pictures that are 0 or 1 and nothing else, by "reward" and "reward/part"."""
        rewards = self.rewards_of(suite).items()
        return frozenset(f"{title}/{part}".rstrip("/") for title, model in rewards for part in model.right_or_wrong())

    def units(self, suite: str) -> list[Unit]:
        """Return the rows of a suite, sample by sample and prompt by prompt, in units.

        The noise of a row hangs on the seed, the number of its prompt and of the sample alone, as in the evaluations of
        a training.
        """
        return self._units[suite]

    @functools.cached_property
    def _units(self) -> Mapping[str, list[Unit]]:
        draw, found = Draw(self.making.seed), {}
        for suite, items in self.items.items():
            rows = [
                Row(f"{item:05d}-{sample}", item, sample, draw.key("evaluation", item, sample))
                for sample in range(self.making.pictures or self.suites[suite].pictures)
                for item in range(len(items))
            ]
            found[suite] = units(rows, self.making.batch_size)
        return found

    def reference_units(self) -> list[Unit]:
        """Return the rows of pictures as they should be, in units."""
        rows = [Row(f"{number:05d}", number, 0, 0) for number in range(self.references)]
        return units(rows, self.making.batch_size)

    def units_of(self, subject: str, suite: str) -> list[Unit]:
        """Return the units of a subject, or of the reference."""
        return self.reference_units() if subject == REFERENCE else self.units(suite)

    def shelf(self, *names: str) -> Shelf:
        """Return where something is kept."""
        return Shelf(self.output.joinpath(*map(folder_name, names)))

    def has_reference(self, suite: str) -> bool:
        """Whether there are pictures as they should be."""
        return self.real is not None or self.suites[suite].reference(0, 0) is not None

    def fixed(self) -> dict[str, Any]:
        """Return what must stay as it was for pictures of one folder to be comparable."""
        return {
            "seed": self.making.seed,
            "limit": self.making.limit,
            "batch_size": self.making.batch_size,
            "call": {key: build.written(value) for key, value in self.making.call.items()},
            "dtype": self.making.dtype,
            "autocast": self.making.autocast,
            "suites": {name: _digest(items) for name, items in self.items.items()},
            "reference": None if self.real is None else str(self.real.resolve()),
        }

    def settle(self, words: Mapping[str, object], share: Share) -> None:
        """Write what was asked for, or refuse a folder in which something else was.

        Raises:
            ConfigError: Naming what differs.
        """
        path, fixed = self.output / PROTOCOL, json.loads(json.dumps(self.fixed()))
        before = read_protocol(self.output)
        if before is not None:
            kept = before["fixed"]
            shared = fixed["suites"].keys() & kept["suites"].keys()
            differing = [key for key in fixed if key != "suites" and fixed[key] != kept.get(key)]
            differing += [f"prompts of {name}" for name in shared if fixed["suites"][name] != kept["suites"][name]]
            if differing:
                told = ", ".join(
                    key if key.startswith("prompts") else f"{key} ({kept.get(key)} there, {fixed[key]} now)"
                    for key in differing
                )
                raise ConfigError(
                    f"--output {self.output} holds pictures that were made with another {told}: they do not pair with "
                    "new ones; choose another --output, or ask for the same"
                )
            fixed["suites"] = kept["suites"] | fixed["suites"]
        if share.rank == 0:
            text = json.dumps({"visalign": __version__, "asked": words, "fixed": fixed}, indent=2, ensure_ascii=False)
            write(path, f"{text}\n".encode(errors="replace"))


def read_protocol(output: Path) -> dict[str, Any] | None:
    """Return the protocol of a folder; None where there is none.

    Raises:
        DataError: If it is damaged.
    """
    path = output / PROTOCOL
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["asked"].keys() and found["fixed"]["suites"] is not None:
            return found
    except (OSError, ValueError, LookupError) as error:
        raise DataError(f"{path} is damaged ({error}); choose another --output") from error
    return found


def folder_name(name: str) -> str:
    """Return a name that a folder can have, another one for another name."""
    plain = "".join(letter if letter.isalnum() or letter in "._-@+ " else "-" for letter in name)[:80].strip(". ")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _digest(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        inputs = {name: v if isinstance(v, str) else v.digest for name, v in inputs_of(item.prompt).items()}
        digest.update(json.dumps([str(item.prompt), inputs], sort_keys=True).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]
