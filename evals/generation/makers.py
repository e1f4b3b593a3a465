"""Where a subject's pictures come from: a pipeline that is called, a folder that has them, a suite that draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from alignment.checkpoints.artifacts import read_card
from alignment.checkpoints.contents import adapters_digests, pipeline_digest
from alignment.checkpoints.whole import trained_pipeline
from alignment.data.clips import CLIPS
from alignment.data.media import find
from alignment.errors import ConfigError, DataError, NumericsError
from alignment.policy.networks.loading import load_pipeline
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare_to_generate
from evals.benchmarks.base import json_records, wanted
from evals.generation.files import encoded
from evals.generation.plan import EvalPlan, folder_name
from evals.generation.shelf import Row, Unit, write
from evals.generation.subjects import Candidate
from evals.medium import PICTURES, Medium
from evals.suites.base import Item

SAMPLES = "samples"
MANIFEST = "manifest.jsonl"
_TOLD = 3
"""Files that a message names."""


class Maker(Protocol):
    """Brings a subject's pictures."""

    @property
    def fingerprint(self) -> str:
        """What it makes them with, in a few letters; the same for the same."""
        ...

    def __call__(self, suite: str, unit: Unit) -> list[Path]:
        """Return the file of each row of a unit, whole."""
        ...


@dataclass(frozen=True)
class Generated:
    """Pictures that a pipeline makes now.

    Attributes:
        name: Of the subject.
        plan: The comparison.
        policy: The pipeline, which knows every prompt.
        fingerprint: Of the pipeline and its adapters.
    """

    name: str
    plan: EvalPlan
    policy: Policy
    fingerprint: str

    def __call__(self, suite: str, unit: Unit) -> list[Path]:
        """Generate a unit's rows in one pipeline call.

        Raises:
            NumericsError: If pixels are not finite.
        """
        items = self.plan.items[suite]
        prompts = [items[row.item].prompt for row in unit.rows]
        media = self.policy.generate(prompts, torch.tensor([row.seed for row in unit.rows]), {})
        broken = [row.name for row, x in zip(unit.rows, media.pixels, strict=True) if not bool(x.isfinite().all())]
        if broken:
            raise NumericsError(
                f"{self.name}: pixels of {', '.join(broken[:_TOLD])} of {suite} are not finite: its weights hold NaN, "
                "or a network overflows in its dtype; compute in float32 (--dtype float32)"
            )
        folder = self.plan.output / SAMPLES / folder_name(self.name) / folder_name(suite)
        made = []
        for row, pixels in zip(unit.rows, media.pixels, strict=True):
            content, ending = encoded(pixels, media.fps)
            path = folder / f"{row.name}{ending}"
            write(path, content)
            made.append(path)
        return made


def generated(subject: Candidate, plan: EvalPlan) -> Generated:
    """Load a subject's pipeline and show it every prompt.

    Raises:
        VisalignError: As training does, where pipeline, adapters or call arguments cannot be used.
    """
    making = plan.making
    settings = {"call": dict(making.call), "dtype": making.dtype, "autocast": making.autocast}
    spec = replace(subject.spec(), **settings, embedding_cache=None)
    if subject.whole is None:
        pipe = load_pipeline(spec, plan.device)
    else:
        pipe = trained_pipeline(subject.whole, read_card(subject.whole)).to(plan.device)
        pipe.set_progress_bar_config(disable=True)
    digest = pipeline_digest(pipe)
    policy = load_policy(spec, device=plan.device, seed=0, pipe=pipe)
    digest += "".join(f" {name[-8:]}" for name in adapters_digests(policy.weights.brought).values())
    asked = {f"suite {suite}": [item.prompt for item in items] for suite, items in plan.items.items()}
    prepare_to_generate(policy, asked)
    return Generated(subject.name, plan, policy, digest)


@dataclass(frozen=True)
class FromFolder:
    """Pictures that lie in a folder.

    Attributes:
        name: Of the subject.
        files: The file of each row, by suite and the row's name.
        fingerprint: The folder's path.
    """

    name: str
    files: Mapping[str, Mapping[str, Path]]
    fingerprint: str

    def __call__(self, suite: str, unit: Unit) -> list[Path]:
        """Return the files of a unit."""
        return [self.files[suite][row.name] for row in unit.rows]


def brought(subject: Candidate, plan: EvalPlan) -> FromFolder:
    """Find the picture of every row in a subject's folder, or in the folder there that is called as the suite.

    A `manifest.jsonl` says {"prompt", "media"} per line, pictures of a prompt in their order. Without one, files are
    called as ours (`00012-3.png`: prompt 12, sample 3) or as the suite's publishers call them.

    Raises:
        DataError: Naming the first of what is missing or given twice.
    """
    place = Path(subject.place)
    files: dict[str, dict[str, Path]] = {}
    for suite, items in plan.items.items():
        own = place / suite
        if len(plan.items) > 1 and not own.is_dir():
            raise DataError(f"{place} has no folder {suite}; with several suites, each has a folder of its own there")
        folder = own if own.is_dir() else place
        rows = [row for unit in plan.units(suite) for row in unit.rows]
        found = _by_manifest(folder, items, rows) if (folder / MANIFEST).is_file() else _by_name(folder, items, rows)
        missing = [row for row in rows if row.name not in found]
        if missing:
            there = [(row, found[row.name]) for row in rows if row.name in found]
            told = "; ".join(
                f"{_sought(row, items, there)} ({str(items[row.item].prompt)[:60]!r})" for row in missing[:_TOLD]
            )
            more = f" and {len(missing) - _TOLD} more" if len(missing) > _TOLD else ""
            raise DataError(
                f"{folder} lacks {len(missing)} of the {len(rows)} pictures of {suite}: {told}{more}. Bring them, or "
                "compare fewer: --pictures per prompt, --limit prompts"
            )
        files[suite] = found
    return FromFolder(subject.name, files, str(place.resolve()))


def _by_manifest(folder: Path, items: Sequence[Item], rows: Sequence[Row]) -> dict[str, Path]:
    path = folder / MANIFEST
    seeds = {row.name: row.seed for row in rows}
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        numbers.setdefault(str(item.prompt), []).append(number)
    seen: dict[str, int] = {}
    found: dict[str, Path] = {}
    for line, record in enumerate(json_records(path), start=1):
        where = f"{path}, line {line}"
        prompt = wanted(record, "prompt", where, str)
        own = numbers.get(prompt, ())
        seen[prompt] = seen.get(prompt, -1) + 1
        try:
            file = find(folder, wanted(record, "media", where))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if not own:
            continue  # a prompt that is not compared
        sample, which = divmod(seen[prompt], len(own))
        name = f"{own[which]:05d}-{sample}"
        if file in found.values():
            raise DataError(f"{where}: {record['media']} stands there twice; each picture counts once")
        if name in seeds and record.get("seed", seeds[name]) != seeds[name]:
            raise DataError(
                f"{where}: {record['media']} was made from seed {record['seed']}, and {seeds[name]} belongs there: it "
                "does not pair with the others. Make it again, or compare with the --seed that it was made with"
            )
        found[name] = file
    return found


def _by_name(folder: Path, items: Sequence[Item], rows: Sequence[Row]) -> dict[str, Path]:
    endings = (*PICTURES, *CLIPS)
    entries: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in endings and path.is_file():
            entries.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not entries:
        raise DataError(f"{folder} holds no pictures or clips ({', '.join(endings)})")
    found: dict[str, Path] = {}
    for row in rows:
        for name in _names(row, items):
            files = entries.get(name, [])
            if len(files) > 1:
                raise DataError(f"{files[0]} and {files[1].name} have one name; which is it? Remove the other")
            if files:
                found[row.name] = files[0]
                break
    return found


def _names(row: Row, items: Sequence[Item]) -> list[str]:
    """Return what a row's picture may be called, without its ending: as ours are, or as its publishers call it."""
    return [row.name, *(name.format(k=row.sample) for name in items[row.item].files)]


def _sought(row: Row, items: Sequence[Item], found: Sequence[tuple[Row, Path]]) -> str:
    """Return what a picture that is missing would be called: as most of those that are there."""
    names = _names(row, items)
    ways = [
        way
        for other, path in found
        for way, name in enumerate(_names(other, items))
        if path.with_suffix("").as_posix().endswith(f"/{name}")
    ]
    return names[max(set(ways), key=ways.count)] if ways else " or ".join(names[:2])


def manifest(plan: EvalPlan, subject: str, suite: str) -> None:
    """Write the manifest of pictures that were made here, so that their folder is a subject, too."""
    folder = plan.output / SAMPLES / folder_name(subject) / folder_name(suite)
    if not folder.is_dir():
        return
    items, lines = plan.items[suite], []
    for unit in plan.units(suite):
        known = plan.shelf("made", subject, suite).get(unit)
        for row, name in zip(unit.rows, known["files"] if known else [], strict=False):
            record = {"prompt": str(items[row.item].prompt), "media": Path(name).name, "seed": row.seed}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write(folder / MANIFEST, "".join(lines).encode(errors="replace"))


@dataclass(frozen=True)
class Drawn:
    """Pictures as they should be.

    Attributes:
        name: Of the reference.
        plan: The comparison.
        real: Files to take, in order; empty for what the suite draws.
        fingerprint: Where they are from.
    """

    name: str
    plan: EvalPlan
    real: tuple[Path, ...]
    fingerprint: str

    def __call__(self, suite: str, unit: Unit) -> list[Path]:
        """Return the files of a unit, drawn where nobody brings them."""
        if self.real:
            return [self.real[row.item] for row in unit.rows]
        made = []
        for row in unit.rows:
            pixels = self.plan.suites[suite].reference(row.item, self.plan.making.seed)
            assert pixels is not None
            content, ending = encoded(pixels, None)
            path = self.plan.output / SAMPLES / self.name / folder_name(suite) / f"{row.name}{ending}"
            write(path, content)
            made.append(path)
        return made


def real_files(folder: Path, count: int) -> tuple[Path, ...]:
    """Return the first pictures or clips of a folder, by name.

    Raises:
        ConfigError: If there are too few.
    """
    endings = (*PICTURES, *CLIPS)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings and p.is_file())
    if len(found) < count:
        raise ConfigError(
            f"--reference {folder} holds {len(found)} pictures or clips, and {count} are asked for; bring more, or "
            f"ask for fewer: --references {len(found)}"
        )
    return tuple(found[:count])


def media(plan: EvalPlan, known: Mapping[str, object]) -> list[Medium]:
    """Return the pictures of a unit that was made.

    Raises:
        DataError: If one is not what was made.
    """
    files, digests = known["files"], known["digests"]
    assert isinstance(files, list)
    assert isinstance(digests, list)
    found = []
    for name, digest in zip(files, digests, strict=True):
        medium = Medium.file(plan.output / name)
        if medium.digest != digest:
            raise DataError(
                f"{plan.output / name} is not what it was when it was made or brought; bring it back, or remove "
                f"{plan.output / 'made'} to take the pictures as they are"
            )
        found.append(medium)
    return found
