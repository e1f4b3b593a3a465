"""People, who are asked on the page of `visalign vote` while a run waits."""

from __future__ import annotations

import json
import os
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import xxhash
from PIL import Image
from torch import Tensor

from reward_models.base import Media, PairwiseJudge, RewardError

ASKED = "asked.jsonl"
"""A line for each pair that people were asked about, and again where they were asked again."""
SAID = "votes.jsonl"
"""A line for each vote: {"pair", "rater", "said"}, where "said" is "first", "second", "tie" or "bad"."""
MEDIA = "media"
_WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5, "bad": 0.5}


@dataclass(frozen=True)
class AskedPair:
    """A pair that people are asked about.

    Attributes:
        pair: Its name, by its content alone.
        prompt: What was asked of the generator.
        media: Names of the two files in `media/`.
        until: When it is too late, in seconds since 1970.
        source: Name of the picture that both were made from; empty where there was only text.
    """

    pair: str
    prompt: str
    media: tuple[str, str]
    until: float
    source: str = ""

    @property
    def item(self) -> int:
        """A number for the prompt."""
        return zlib.crc32(self.prompt.encode(errors="replace"))


@dataclass(frozen=True)
class Votes(PairwiseJudge):
    """Write pairs into a folder, and wait until people have voted on each, or until it is too late.

    The page is another process: `visalign vote --waiting FOLDER` shows what is asked there. A pair on which nobody has
    voted in time is none (NaN); one on which people vote late is known if it is asked about again. So a run that was
    stopped, or that lacked too many votes, makes the same pictures again when it is resumed, and goes on with the votes
    that are there.

    Attributes:
        folder: Where pairs and votes are kept.
        hours: How long people have, from when they are asked.
        raters: Votes that a pair waits for; their mean counts.
        pause: Seconds between two looks at what has arrived.
    """

    folder: str
    hours: float = 24.0
    raters: int = 1
    pause: float = 0.5

    def __post_init__(self) -> None:
        if self.hours < 0 or self.raters < 1 or self.pause <= 0:
            raise RewardError(
                f"votes: hours has to be at least 0, raters at least 1 and pause more than 0; got {self.hours}, "
                f"{self.raters} and {self.pause}"
            )

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse several processes, of which each would ask for itself."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RewardError("votes: people are asked by one process; start the run without a launcher, on one device")

    def waits(self) -> bool:
        """Return True: people do the work."""
        return True

    def asks_people(self) -> bool:
        """Return True."""
        return True

    def load(self, *, device: torch.device) -> _People:
        """Return what asks."""
        self.check(())
        return _People(self)


@dataclass(frozen=True)
class _People:
    model: Votes

    def __call__(self, *, first: Media, second: Media, prompts: Sequence[str]) -> Tensor:
        """Return what people prefer, once they have said so or it is too late."""
        folder, until = Path(self.model.folder), time.time() + 3600 * self.model.hours
        if first.pixels.shape[1] > 1:
            raise RewardError(f"votes: people are asked about pictures; got clips of {first.pixels.shape[1]} frames")
        names = [(kept(folder, a), kept(folder, b)) for a, b in zip(first.pixels, second.pixels, strict=True)]
        sources = [""] * len(names) if first.source is None else [kept(folder, one) for one in first.source.pixels]
        rows = [_asked(*row, until) for row in zip(prompts, names, sources, strict=True)]
        pairs = {pair.pair: pair for pair in rows if pair.media[0] != pair.media[1]}
        self._wait(folder, pairs, until)
        said = read_said(folder / SAID)
        found = []
        for pair, media in zip(rows, names, strict=True):
            worth = [_WORTH[one] for one in said.get(pair.pair, {}).values()]
            mean = sum(worth) / len(worth) if worth else float("nan")
            found.append(0.5 if media[0] == media[1] else mean if media == pair.media else 1 - mean)
        return torch.tensor(found, dtype=torch.float32)

    def _wait(self, folder: Path, pairs: Mapping[str, AskedPair], until: float) -> None:
        told = False
        while missing := [name for name, said in self._votes_on(folder, pairs) if len(said) < self.model.raters]:
            if time.time() >= until:
                warnings.warn(f"votes: {len(missing)} of {len(pairs)} pairs lack votes, and time is up", stacklevel=3)
                return
            if not told:
                _ask(folder, [pairs[name] for name in missing])
                warnings.warn(
                    f"votes: {len(missing)} pairs wait for people, for {self.model.hours:g} hours: visalign vote "
                    f"--waiting {folder}",
                    stacklevel=3,
                )
                told = True
            time.sleep(self.model.pause)

    def _votes_on(self, folder: Path, pairs: Mapping[str, AskedPair]) -> list[tuple[str, Mapping[str, str]]]:
        said = read_said(folder / SAID)
        return [(name, said.get(name, {})) for name in pairs]


def _asked(prompt: str, names: tuple[str, str], source: str, until: float) -> AskedPair:
    """Return the pair of two pictures, the same in whichever order they are given."""
    one, other = sorted(names)
    content = (prompt, one, other, *([source] if source else []))
    name = xxhash.xxh3_128_hexdigest("\n".join(content).encode(errors="replace"))
    return AskedPair(name, prompt, (one, other), until, source)


def kept(folder: Path, frames: Tensor) -> str:
    """Keep a picture `[1, 3, H, W]` in [0, 1], and return its name, which is that of its content."""
    levels = (frames[0].detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    name = f"{xxhash.xxh3_128_hexdigest(repr(levels.shape).encode() + levels.tobytes())}.png"
    path = folder / MEDIA / name
    if not path.is_file():
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{name}.{os.getpid()}")
            Image.fromarray(levels).save(partial, "PNG")
            partial.replace(path)
    return name


def _ask(folder: Path, pairs: Sequence[AskedPair]) -> None:
    """Add to what is asked; the file is there whole or as it was."""
    lines = "".join(json.dumps(asdict(pair)) + "\n" for pair in (*read_asked(folder), *pairs))
    path = folder / ASKED
    with _writing(path):
        partial = path.with_name(f".{ASKED}.{os.getpid()}")
        partial.write_text(lines, encoding="utf-8")
        partial.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RewardError(f"votes: {path} cannot be written: {error.strerror or error}") from error


def read_asked(folder: Path) -> list[AskedPair]:
    """Return the pairs that people were asked about, each once, as it was asked about last.

    Raises:
        RewardError: If the file is damaged.
    """
    found: dict[str, AskedPair] = {}
    for number, line in enumerate(_lines(folder / ASKED), start=1):
        try:
            record = json.loads(line)
            one, other = record["media"]
            until, source = float(record["until"]), str(record.get("source", ""))
            found[record["pair"]] = AskedPair(record["pair"], record["prompt"], (one, other), until, source)
        except (ValueError, LookupError, TypeError) as error:
            raise RewardError(
                f"votes: {folder / ASKED}, line {number} is no pair ({error}); remove the line"
            ) from error
    return list(found.values())


def read_said(path: Path) -> dict[str, dict[str, str]]:
    """Return what was said, by pair and rater.

    Raises:
        RewardError: If the file is damaged.
    """
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
            _WORTH[record["said"]]
            found.setdefault(record["pair"], {})[record["rater"]] = record["said"]
        except (ValueError, LookupError, TypeError) as error:
            raise RewardError(f"votes: {path}, line {number} is no vote ({error}); remove the line") from error
    return found


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file that are whole: another process may be writing the last."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
