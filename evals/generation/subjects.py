"""What is compared: a pipeline, with adapters or without, a checkpoint of a run, or a folder of pictures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alignment.checkpoints.artifacts import read_card
from alignment.checkpoints.checkpoint import LATEST
from alignment.checkpoints.manifest import NAME as MANIFEST
from alignment.checkpoints.manifest import verify
from alignment.config import build, yaml_nodes
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_places import CARD_DATA, LORA_FILE, Place
from alignment.policy.networks.spec import FrozenAdapter, PolicySpec

REFERENCE = "reference"
"""Name of pictures as they should be, which are no subject."""

_NAME = re.compile(r"[\w.@+ -]+")
_SWEPT = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)

Kind = Literal["pipeline", "checkpoint", "pictures"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Candidate:
    """One of what is compared.

    Attributes:
        name: How tables and folders call it.
        place: A pipeline's folder or hub id, a checkpoint or a run, or a folder of pictures or clips.
        adapters: Low-rank adapters laid over it, in order, each with its weight.
        weight: Of a checkpoint's own adapters.
    """

    name: str
    place: str
    adapters: tuple[tuple[str, float], ...] = ()
    weight: float = 1.0

    @property
    def kind(self) -> Kind:
        """What it is, by what lies in the folder."""
        path = Path(self.place)
        if self.checkpoint is not None:
            return "checkpoint"
        if path.is_dir() and not (path / "model_index.json").is_file():
            return "pictures"
        return "pipeline"

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the checkpoint; of a run, its newest; None where it is neither."""
        path = Path(self.place)
        if (path / LATEST).is_file():
            path = path / (path / LATEST).read_text(encoding="utf-8").strip()
        whole = (path / "model_index.json").is_file()  # an export that is a pipeline has a card, too
        return path if (path / CARD_DATA).is_file() and not whole else None

    @property
    def strength(self) -> float | None:
        """The weight of the one adapter that it has; None where that means nothing."""
        if self.kind == "checkpoint" and not self.adapters:
            return self.weight
        return self.adapters[0][1] if len(self.adapters) == 1 and self.kind == "pipeline" else None

    def spec(self) -> PolicySpec:
        """Return the pipeline with its adapters, as it is loaded to generate.

        Raises:
            CheckpointError: If it is a checkpoint that is damaged.
            ConfigError: If it cannot be had with these adapters.
        """
        folder, more = self.checkpoint, tuple(FrozenAdapter(*one) for one in self.adapters if one[1])
        if folder is None:
            return PolicySpec(self.place, adapters=more)
        if not (folder / MANIFEST).is_file():
            raise ConfigError(
                f"{folder} holds exported adapters; give the pipeline that they are for: PIPELINE+{folder}"
            )
        verify(folder)
        spec = build.build(PolicySpec, yaml_nodes.parse(yaml_nodes.dump(_policy(folder)), str(folder / CARD_DATA)))
        spec = replace(spec, lora=None, trainable=None, compile=False, gradient_checkpointing=False, quantize=None)
        own = (FrozenAdapter(str(folder), self.weight),) if self.weight else ()
        under = copies_under(folder, spec.adapters)
        return replace(spec, adapters=(*under, *(own if (folder / LORA_FILE).is_file() else ()), *more))

    @property
    def whole(self) -> Path | None:
        """The checkpoint, where it holds fully trained weights and no adapters."""
        folder = self.checkpoint
        return folder if folder is not None and not (folder / LORA_FILE).is_file() else None


def copies_under(folder: Path, adapters: Sequence[FrozenAdapter]) -> Sequence[FrozenAdapter]:
    """Return what a checkpoint was trained on top of, from its own copies: the originals may have changed."""
    copies, numbers = Place("checkpoint", str(folder)).lying_under(), itertools.count()
    found = []
    for adapter in adapters:
        copy = copies.get(next(numbers)) if adapter.when == "always" else None
        found.append(adapter if copy is None else replace(adapter, path=str(copy)))
    return found


def _policy(folder: Path) -> Any:
    return read_card(folder).config["policy"]


def parse(words: Sequence[str]) -> tuple[Candidate, ...]:
    """Return the subjects that words name: `[NAME=]PLACE[@WEIGHT][+ADAPTER[@WEIGHT]]...`.

    Raises:
        ConfigError: If a word cannot be read so, nothing is there, or two have one name.
    """
    found = [_one(word) for word in words]
    taken: dict[str, str] = {}
    for word, subject in zip(words, found, strict=True):
        if subject.name in taken:
            raise ConfigError(
                f"{taken[subject.name]} and {word} are both called {subject.name}; give one a name: NAME={word}"
            )
        if subject.name == REFERENCE:
            raise ConfigError(f"{word}: no subject can be called {REFERENCE}; give it a name: NAME={word}")
        taken[subject.name] = word
    return tuple(found)


def sweep(subject: Candidate) -> tuple[Candidate, ...]:
    """Return a subject at several strengths of its one adapter.

    Raises:
        ConfigError: If it has not just one.
    """
    if subject.strength is None or subject.whole is not None:
        raise ConfigError(
            f"--sweep: {subject.name} has not just one adapter whose strength could be changed; give PIPELINE+ADAPTER, "
            "or a checkpoint of adapters"
        )
    stem = subject.name.rpartition("@")[0] or subject.name
    made = [(f"{stem}@{weight:g}", weight) for weight in _SWEPT]
    if subject.kind == "checkpoint":
        return tuple(replace(subject, name=name, weight=weight) for name, weight in made)
    return tuple(replace(subject, name=name, adapters=((subject.adapters[0][0], weight),)) for name, weight in made)


def _one(word: str) -> Candidate:
    name, given, rest = word.partition("=")
    if not given:
        name, rest = "", word
    first, *others = (_weighed(part, word) for part in rest.split("+"))
    subject = Candidate(name or _called(rest), first[0], tuple(others), first[1])
    if not first[0] or not _NAME.fullmatch(subject.name) or subject.name.strip(". ") == "":
        raise ConfigError(f"{word!r:.200}: expected [NAME=]PLACE[+ADAPTER[@WEIGHT]]..., NAME of letters and digits")
    path = Path(first[0])
    if path.is_file():
        raise ConfigError(f"{word}: {path} is a file; expected a folder: a pipeline, a checkpoint or run, or pictures")
    # `runs/tuned` has the shape of a hub id, too, but a folder `runs` says what was meant.
    local = path.parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", first[0])
    if not path.is_dir() and local:
        raise ConfigError(f"{word}: there is no folder {first[0]}, and it is not a hub id (owner/name)")
    if subject.kind == "pictures" and others:
        raise ConfigError(f"{word}: {path} is a folder of pictures, over which no adapter can be laid")
    if subject.kind != "checkpoint" and first[1] != 1.0:
        raise ConfigError(f"{word}: only adapters have a weight: PIPELINE+ADAPTER@{first[1]:g}")
    return subject


def _weighed(part: str, word: str) -> tuple[str, float]:
    place, given, weight = part.rpartition("@")
    if not given:
        return part, 1.0
    try:
        return place, float(weight)
    except ValueError as error:
        raise ConfigError(f"{word}: {weight!r} behind @ is not a number; the weight of an adapter is") from error


def _called(rest: str) -> str:
    """Return a short name: the last part of each path, and of a checkpoint the run's, too."""
    names = []
    for part in rest.split("+"):
        place, given, weight = part.rpartition("@")
        path = Path(place if given else part)
        last = f"{path.parent.name} {path.name}" if path.name.startswith("checkpoint-") else path.resolve().name
        names.append(f"{last}@{weight}" if given else last)
    return "+".join(names).strip()


@dataclass(frozen=True)
class Trained:
    """How checkpoints were called, and in what precision: the others are made in the same way.

    Attributes:
        call: Arguments of the pipeline's call.
        dtype: Of the weights.
        autocast: What networks compute in, where that is another.
    """

    call: Mapping[str, object] = field(default_factory=dict)
    dtype: Dtype = "float32"
    autocast: Literal["bfloat16", "float16"] | None = None


def trained(subjects: Sequence[Candidate], *, call: bool, dtype: bool) -> Trained:
    """Return how the checkpoints among the subjects were called and computed; as diffusers does where there are none.

    Args:
        subjects: What is compared.
        call: Whether the arguments of their calls matter; not where the command line gives them.
        dtype: The same of what they compute in.

    Raises:
        ConfigError: If they differ, so that pictures would differ for that alone.
    """
    specs = {subject.name: subject.spec() for subject in subjects if subject.kind == "checkpoint"}
    called = {name: Trained(s.call if call else {}) for name, s in specs.items()}
    found = {
        name: replace(one, dtype=specs[name].dtype, autocast=specs[name].autocast) if dtype else one
        for name, one in called.items()
    }
    for name, other in found.items():
        first = next(iter(found))
        if other != found[first]:
            pairs = [({"dtype": one.dtype, "autocast": one.autocast} | dict(one.call)) for one in (found[first], other)]
            differing = sorted(
                key for key in pairs[0].keys() | pairs[1].keys() if pairs[0].get(key) != pairs[1].get(key)
            )
            raise ConfigError(
                f"{first} and {name} were trained with other "
                + ", ".join(f"{key} ({pairs[0].get(key)} and {pairs[1].get(key)})" for key in differing)
                + ", and their pictures would differ for that alone; say with --call (and --dtype) what both are "
                "compared at"
            )
    return next(iter(found.values()), Trained())
