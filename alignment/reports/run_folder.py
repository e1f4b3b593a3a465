"""The layout of a run's folder: what each file is called, and how it is read and written.

    config.resolved.yaml          the configuration as it ran
    environment.json              versions, machine, and what was found out about the pipeline
    metrics.jsonl                 one JSON object per step; the names are in docs/metrics.md
    samples/000050-train.png      captioned grids of what was trained on after 50 steps; of clips the contact sheet of
                                  a film, 000050-train.mp4; 000050-credit.png shows where their credit went, if it was
                                  not given everywhere
    evaluation/base.json          held-out scores before training; so too step-000050.json and final.json
    evaluation/base.safetensors   the first pictures of that evaluation
    watch.jsonl                   what a watch was alarmed about, one JSON object per alarm
    summary.json                  the run in numbers, written at its end
    report.html                   all of it, to look at

An evaluation's JSON holds `{"step", "fps", "prompts": [n], "seeds": [n], "scores": {METRIC: [n]}}` for all its n
pictures, null for one that was not scored. Its safetensors file holds `pixels`, uint8 `[k, F, 3, H, W]`, of the first
k <= n of them, and that of `base` the `features` from which a watch measures drift, `[n, d]`. The same prompts and
seeds come in the same order in every evaluation of a run, so that they pair.

JSON has no NaN and no infinity. A metric that is not finite is null in its line, and `"nonfinite": {METRIC: "nan"}`
(or "inf", "-inf") in the same line records what it was.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from alignment.data.batches import Prompt, inputs_of
from alignment.errors import DataError, EnvironmentProblem
from reward_models.base import Media, RewardError

CONFIG, ENVIRONMENT, METRICS = "config.resolved.yaml", "environment.json", "metrics.jsonl"
SUMMARY, REPORT = "summary.json", "report.html"
SAMPLES, EVALUATIONS = "samples", "evaluation"
ALARMS = "watch.jsonl"
ALARM = {"metric": str, "since": int, "now": int, "change": float, "at_most": float, "did": str}
"""What a line of it has; `alignment.training.watch.Alarm` says what each is."""
BASE, FINAL = "base", "final"
CREDIT = "credit"
"""Name of the grids that show where in the samples their credit went."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation on held-out prompts.

    Attributes:
        prompts: One text per picture, for all n pictures.
        seeds: `[n]` int64, the seed of each picture's noise.
        scores: `[n]` of each metric; NaN where a picture was not scored.
        media: The first k <= n pictures.
        features: `[n, d]` of the pictures, where later ones are compared with them; else None.
    """

    prompts: tuple[str, ...]
    seeds: Tensor
    scores: Mapping[str, Tensor]
    media: Media
    features: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = {"seeds": len(self.seeds), **{name: len(score) for name, score in self.scores.items()}}
        if any(length != len(self.prompts) for length in lengths.values()) or len(self.media) > len(self.prompts):
            raise ValueError(f"{len(self.prompts)} prompts, {len(self.media)} pictures, but {lengths}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that a reader, or a power cut, sees the old file or the new one and nothing between.

    Raises:
        EnvironmentProblem: If the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise EnvironmentProblem(cannot_write(path, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """Return the message for a write that the disk refused."""
    return (
        f"cannot write {path}: {error.strerror}; free space or fix the permission, then continue with --resume latest, "
        "or, if no checkpoint was saved yet, start afresh with output.overwrite=true"
    )


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode(errors="replace"))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; the file is damaged") from error


def metric_line(step: int, metrics: Mapping[str, float]) -> bytes:
    """Return the line of `metrics.jsonl` for one step, with its end of line."""
    line: dict[str, object] = {"step": step}
    nonfinite: dict[str, str] = {}
    for name, value in metrics.items():
        line[name] = value if math.isfinite(value) else None
        if not math.isfinite(value):
            nonfinite[name] = str(float(value))
    if nonfinite:
        line["nonfinite"] = nonfinite
    return f"{json.dumps(line, allow_nan=False)}\n".encode()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl`, without a last one that a crash left half-written.

    Raises:
        DataError: If the file cannot be read, or a line that was finished is not a JSON object with a step and numbers.
    """
    try:
        finished = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return [_metrics_of(text, f"{path}, line {number}") for number, text in enumerate(finished, start=1)]


def _metrics_of(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int) or abs(line["step"]) >= 2**63:
        raise DataError(
            f'{where}: expected a JSON object with a "step", got {text[:80]!r}; the file was edited or damaged: remove '
            "the line"
        )
    for name, value in line.items():
        if name != "nonfinite" and not isinstance(value, int | float | None):
            raise DataError(
                f"{where}: {name} is {json.dumps(value)[:80]}, not a number; the file was edited or damaged: remove "
                "the line"
            )
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise DataError(
                f"{where}: {name} has more digits than a number of 64 bits can have; the file was edited or damaged: "
                "remove the line"
            )
    return line


def write_evaluation(folder: Path, name: str, step: int, result: Evaluated) -> None:
    """Write `evaluation/NAME.safetensors`, then the JSON that makes it count."""
    pixels = (result.media.pixels.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().cpu()
    features = {} if result.features is None else {"features": result.features.contiguous()}
    write_atomically(folder / EVALUATIONS / f"{name}.safetensors", save({"pixels": pixels, **features}))
    scores = {
        metric: [None if math.isnan(value) else value for value in score.tolist()]
        for metric, score in result.scores.items()
    }
    description = {"step": step, "fps": result.media.fps, "prompts": result.prompts, "seeds": result.seeds.tolist()}
    if any(inputs_of(prompt) for prompt in result.prompts):  # one text over two pictures is two prompts
        description["inputs"] = [
            {name: value if isinstance(value, str) else value.digest for name, value in inputs_of(prompt).items()}
            for prompt in result.prompts
        ]
    write_json(folder / EVALUATIONS / f"{name}.json", {**description, "scores": scores})


def write_alarms(folder: Path, alarms: Sequence[Mapping[str, object]]) -> None:
    """Write what a watch was alarmed about, whole."""
    write_atomically(folder / ALARMS, "".join(f"{json.dumps(alarm)}\n" for alarm in alarms).encode())


def read_alarms(folder: Path) -> list[dict[str, Any]]:
    """Return what a watch was alarmed about.

    Raises:
        DataError: If the file is damaged.
    """
    path = folder / ALARMS
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
        alarms = [json.loads(line) for line in lines]
        for number, alarm in enumerate(alarms, start=1):
            if not isinstance(alarm, dict) or {name: type(value) for name, value in alarm.items()} != ALARM:
                raise ValueError(f"line {number} is no alarm")
        return alarms
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and the alarms so far are forgotten") from error


LARGEST = torch.finfo(torch.float32).max
"""Of a score, which is float32."""


class Described(BaseModel):
    """What an evaluation's JSON holds; see the layout above."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    step: int
    fps: Annotated[float, Field(gt=0)] | None
    prompts: list[str]
    seeds: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]]
    scores: dict[str, list[Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None]]
    inputs: list[dict[str, str]] | None = None


def read_description(path: Path) -> Described:
    """Return what an evaluation's JSON holds.

    Raises:
        DataError: If it is missing, or not what was written there; the message names the key.
    """
    try:
        return Described.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole of it"
        raise DataError(f"{path} is damaged: {key}: {first['msg'].lower()}") from error


def read_evaluation(folder: Path, name: str) -> tuple[int, Evaluated]:
    """Return the step of the evaluation called `name`, and what it found.

    Raises:
        DataError: If a file is missing or damaged.
    """
    path = folder / EVALUATIONS / f"{name}.json"
    described = read_description(path)
    scores = {
        metric: torch.tensor([math.nan if value is None else value for value in score], dtype=torch.float32)
        for metric, score in described.scores.items()
    }
    texts = described.prompts
    brought = described.inputs or [{}] * len(texts)
    held = path.with_suffix(".safetensors")
    try:
        prompts = tuple(Prompt(t, i) if i else t for t, i in zip(texts, brought, strict=True))
        pixels, features = _held(held)
        seeds = torch.tensor(described.seeds, dtype=torch.int64)
        return described.step, Evaluated(prompts, seeds, scores, Media(pixels, described.fps), features)
    except (RewardError, ValueError) as error:
        raise DataError(f"{path} or {held.name} is damaged: {error}") from error


def _held(path: Path) -> tuple[Tensor, Tensor | None]:
    try:
        held = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is missing or damaged: {error}") from error
    pixels = held.get("pixels")
    if pixels is None or pixels.dtype != torch.uint8 or 0 in pixels.shape[1:]:
        raise DataError(f"{path} is damaged: it holds no pictures")
    return pixels.float() / 255, held.get("features")


def read_evaluations(folder: Path) -> dict[str, tuple[int, Evaluated]]:
    """Return every evaluation of the run by name, in the order of training."""
    names = [path.stem for path in sorted((folder / EVALUATIONS).glob("[!.]*.json"))]
    found = {name: read_evaluation(folder, name) for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[0] == FINAL)))
