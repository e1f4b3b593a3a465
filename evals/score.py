"""`visalign rewards score`: a score for each medium of a file or folder; continues where it was interrupted."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from alignment.data.media import find
from alignment.data.parquet import write_rows
from alignment.errors import DataError, EnvironmentProblem
from alignment.reports.console import Console
from evals.benchmarks.base import json_records, wanted
from evals.medium import CLIPS, PICTURES, Medium
from evals.scoring import BatchScorer, MediumScore, Request
from reward_models.base import RewardError

WRITERS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Line:
    """One medium of the input.

    Attributes:
        record: Its record in the input; the output adds its score and the parts of the score.
        request: What is scored.
    """

    record: dict[str, Any]
    request: Request


def read(path: Path, prompt: str | None) -> list[Line]:
    """Return the media of a `.jsonl` file ({"prompt", "media"} per line) or of a folder.

    In a folder, the prompt of `NAME.png` is in `NAME.txt` beside it, or is `prompt` for all.

    Args:
        path: The file or folder.
        prompt: Of media that bring none; None refuses them, and "" suits a reward that reads no prompts.

    Raises:
        DataError: Naming what cannot be used.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in (*PICTURES, *CLIPS))
        if not files:
            raise DataError(f"{path} holds no pictures or clips ({', '.join((*PICTURES, *CLIPS))})")
        texts = [_prompt_of(file, prompt) for file in files]
        return [
            Line({"prompt": text, "media": file.name}, Request(text, Medium.file(file)))
            for text, file in zip(texts, files, strict=True)
        ]
    if not path.is_file():
        raise DataError(f"--input {path}: there is no such file or folder")
    lines = []
    for number, record in enumerate(json_records(path), start=1):
        place = f"{path}, record {number}"
        text = wanted(record, "prompt", place, str) if prompt is None or "prompt" in record else prompt
        name = wanted(record, "media", place)
        try:
            lines.append(Line(record, Request(text, Medium.file(find(path.parent, name)))))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    if not lines:
        raise DataError(f"{path} is empty")
    for number, line in enumerate(lines, start=1):
        _check_text(line.request.prompt, f"{path}, record {number}")
    return lines


def _check_text(prompt: str, place: str) -> None:
    """Refuse what no file can hold: halves of characters, as JSON's escapes and broken command lines make them."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: the prompt {prompt!r:.80} is not Unicode text") from error


def _prompt_of(file: Path, prompt: str | None) -> str:
    beside = file.with_suffix(".txt")
    if beside.is_file():
        try:
            return beside.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{beside} is not UTF-8 text: {error}; save it as UTF-8") from error
    if prompt is None:
        raise DataError(f"{file} has no prompt: write it into {beside.name} beside it, or give --prompt for all")
    _check_text(prompt, "--prompt")
    return prompt


def write(
    scorer: BatchScorer, lines: Sequence[Line], output: Path, meant: str, on_error: Literal["stop", "skip"]
) -> int:
    """Score `lines` into `output` and return how many have no score.

    Scores go to a `.jsonl` file line by line; a second run with the same reward and input continues there. A `.csv` or
    `.parquet` file is made from it at the end.

    Args:
        scorer: What scores.
        lines: What is scored.
        output: Its ending decides the form.
        meant: The reward in words; another one must not continue the file.
        on_error: What happens with a medium that cannot be read or that the reward refuses: stop everything, or give it
            an "error" and no score. A reward that refuses a whole batch stops everything in either case.

    Raises:
        DataError: If a medium cannot be read, none has a score, or `output` is of another input or reward.
        RewardError: If the reward fails.
        EnvironmentProblem: If `output` cannot be written.
    """
    if output.suffix not in WRITERS:
        raise DataError(f"--output {output}: expected a name that ends in {', '.join(WRITERS)}")
    partial = output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial.jsonl")
    with _writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        scored = _continued(partial, lines, meant)
        file = partial.open("a", encoding="utf-8")
    with _bar(len(lines)) as advance, file:
        advance(len(scored))
        for start in range(len(scored), len(lines), scorer.batch_size):
            made = _scored(scorer, lines[start : start + scorer.batch_size], on_error)
            with _writing(output):
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in made)
                file.flush()
                os.fsync(file.fileno())
            scored += made
            advance(len(made))
    with _writing(output):
        _finish(output, partial, scored)
    missing = sum(record["score"] is None for record in scored)
    if missing == len(scored):
        raise DataError(f"none of {len(scored)} media has a score; {output} has what is known of the reasons")
    return missing


def _finish(output: Path, partial: Path, scored: Sequence[dict[str, Any]]) -> None:
    """Make the file that was asked for, where it is not the partial one."""
    if partial == output:
        return
    if output.suffix == ".csv":
        _write_csv(output, scored)
    else:
        try:
            write_rows(output, scored)
        except DataError as error:
            raise DataError(f"{error}; every score is kept in {partial}, or ask for .csv or .jsonl") from error
    partial.unlink()
    _meaning(partial).unlink()


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"--output {output} cannot be written: {error.strerror or error}; free some space, or choose another"
        ) from error


def _scored(scorer: BatchScorer, lines: Sequence[Line], on_error: Literal["stop", "skip"]) -> list[dict[str, Any]]:
    try:
        verdicts = scorer.verdicts([line.request for line in lines])
    except (DataError, RewardError) as error:
        if on_error == "stop":
            raise
        if len(lines) == 1:
            return [{**lines[0].record, "score": None, "error": str(error)}]
        made = [record for line in lines for record in _scored(scorer, [line], on_error)]
        if isinstance(error, RewardError) and all(record["score"] is None for record in made):
            raise
        return made
    return [{**line.record, **_columns(verdict)} for line, verdict in zip(lines, verdicts, strict=True)]


def _columns(verdict: MediumScore) -> dict[str, float | None]:
    """Return "score", and "score/NAME" of each part; None where there is none."""
    found = {"score": verdict.score, **{f"score/{name}": part for name, part in verdict.parts.items()}}
    return {name: None if math.isnan(number) else number for name, number in found.items()}


def _meaning(partial: Path) -> Path:
    return partial.with_name(partial.name + ".reward")


def _continued(partial: Path, lines: Sequence[Line], meant: str) -> list[dict[str, Any]]:
    """Return what an earlier run has written, without a line it could not finish."""
    if not partial.exists() or partial.stat().st_size == 0:  # nothing was scored
        _meaning(partial).write_text(meant, encoding="utf-8")
        return []
    if not _meaning(partial).exists() or _meaning(partial).read_text(encoding="utf-8") != meant:
        raise DataError(f"{partial} was written by another reward; remove it, or choose another --output")
    text = partial.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        partial.write_text(whole, encoding="utf-8")
    scored = json_records(partial)
    for number, (record, line) in enumerate(zip(scored, lines, strict=False), start=1):
        if {**record, **line.record} != record:
            raise DataError(f"{partial}, line {number} is of another input; remove it, or choose another --output")
    if len(scored) > len(lines):
        raise DataError(
            f"{partial} has {len(scored)} lines for {len(lines)} media; remove it, or choose another --output"
        )
    return scored


def _write_csv(output: Path, records: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in records for name in record))
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(records)


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    """Show on standard error how many are done and how long the rest takes."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
