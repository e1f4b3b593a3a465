"""Records what a run does, as it does it. The files are those of `alignment/reports/run_folder.py`.

Only the main process records. Every line of metrics is on the disk before the next step begins, so a run that is killed
has lost none; a run that resumes first takes back what came after its checkpoint, so that no step is recorded twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from alignment.data.frame_rate import EXPORTED
from alignment.errors import EnvironmentProblem
from alignment.reports import run_folder
from alignment.reports.environment import environment
from alignment.reports.pictures import contact_sheet, encode, encode_clip, grid, printable
from alignment.reports.progress import REWARD, ProgressLine
from alignment.reports.run_folder import BASE, FINAL, Evaluated
from alignment.reports.statistics import Interval, interval
from alignment.reports.trackers import Tracker
from reward_models.base import Media, Rewards

SAMPLES_SHOWN = 32
"""Rows of a sample grid; a step may have hundreds."""


class Recorder:
    """The record of one run.

    Attributes:
        folder: The run's folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        trackers: Sequence[Tracker] = (),
        quiet: bool = False,
        found: Mapping[str, object] | None = None,
        headline: str = REWARD,
    ) -> None:
        """Open the record in `folder`, after whatever lines it holds.

        Args:
            folder: The run's folder.
            total_steps: Of the run.
            trackers: Trackers that get a copy.
            quiet: Show no progress.
            found: What was found out about the pipeline, for `environment.json`.
            headline: Metric shown with the progress, beside the reward.
        """
        self.folder = folder
        self._trackers = tuple(trackers)
        self._metrics = folder / run_folder.METRICS
        self._progress = ProgressLine(total_steps, quiet=quiet, headline=headline)
        run_folder.write_json(folder / run_folder.ENVIRONMENT, environment() | ({"prepared": found} if found else {}))
        self.resume_at(self._next_step())

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def resume_at(self, step: int) -> None:
        """Forget steps from `step` on, evaluations made later than `step`, and a half-written last line."""
        kept = [line for line in run_folder.read_metrics(self._metrics) if line["step"] < step]
        lines = "".join(f"{json.dumps(line)}\n" for line in kept).encode()
        if self._metrics.exists() and lines != self._metrics.read_bytes():
            run_folder.write_atomically(self._metrics, lines)
        for path in (self.folder / run_folder.EVALUATIONS).glob("[!.]*.json"):
            if run_folder.read_description(path).step > step:
                path.unlink()
                path.with_suffix(".safetensors").unlink(missing_ok=True)
        self._expected = step
        if alarms := run_folder.read_alarms(self.folder):
            run_folder.write_alarms(self.folder, [alarm for alarm in alarms if alarm["now"] <= step])

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step, on the disk when this returns.

        Args:
            step: Index of the step, from 0; each comes once and in order.
            metrics: Numbers by name, see docs/metrics.md; one that is not finite is kept as null and named.

        Raises:
            ValueError: If a step is left out or recorded twice.
            EnvironmentProblem: If the disk refuses the line.
        """
        if step != self._expected:
            raise ValueError(f"the record expects step {self._expected} next, got step {step}")
        try:
            with self._metrics.open("ab") as file:
                file.write(run_folder.metric_line(step, metrics))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentProblem(run_folder.cannot_write(self._metrics, error)) from error
        self._expected = step + 1
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(step, finite)
        self._progress.advance(step + 1, finite)

    def samples(self, name: str, step: int, media: Media, prompts: Sequence[str], rewards: Rewards) -> Path:
        """Write a captioned grid of the first rows to `samples/` and return its path.

        Clips are a film, with a contact sheet of the same name beside it.
        """
        shown = slice(0, SAMPLES_SHOWN)
        media, captions = media[shown], list(prompts)[shown]
        scores = rewards.value[shown].tolist()
        notes = ["not scored" if math.isnan(score) else f"reward {score:.3g}" for score in scores]
        pages = grid(media, captions, notes)
        moving = len(pages) > 1
        path = self.folder / run_folder.SAMPLES / f"{step:06d}-{name}.{'mp4' if moving else 'png'}"
        content = encode_clip(pages, media.fps or EXPORTED) if moving else encode(pages[0])
        run_folder.write_atomically(path, content)
        if moving:
            sheet = encode(contact_sheet(media, captions, notes))
            run_folder.write_atomically(path.with_suffix(".png"), sheet)
        labels = [f"{note} · {printable(text)}" for note, text in zip(notes, captions, strict=True)]
        self._show(step, f"samples/{name}", media, labels)
        return path

    def evaluation(self, name: str, step: int, result: Evaluated) -> dict[str, Interval]:
        """Keep an evaluation made after `step` steps, and return the mean of each metric with its interval.

        Args:
            name: "base", "final", or "step-000050" for a point of the curve.
            step: Steps done when it was made.
            result: Pictures and scores; the same prompts and seeds, in the same order, every time.
        """
        run_folder.write_evaluation(self.folder, name, step, result)
        means = intervals(result)
        for metric, found in means.items():
            self._progress.note(f"{name}: {metric} {describe(found)}")
        values = {f"evaluation/{metric}": found.mean for metric, found in means.items() if math.isfinite(found.mean)}
        captions = [_caption(result, row) for row in range(len(result.media))]
        for tracker in self._trackers:
            tracker.log(step, values)
        self._show(step, f"evaluation/{name}", result.media, captions)
        return means

    def alarm(self, alarms: Sequence[Mapping[str, object]], says: str) -> None:
        """Keep the alarms of a watch so far, and show what the last one says."""
        run_folder.write_alarms(self.folder, alarms)
        self._progress.note(says)

    def summary(
        self, *, seed: int, steps: int, wall_seconds: float, peak_memory_bytes: int, watch: object = None
    ) -> dict[str, object]:
        """Write `summary.json` from these numbers and the evaluations called base and final, and return it."""
        found = run_folder.read_evaluations(self.folder)
        ends = {name: intervals(found[name][1]) for name in (BASE, FINAL) if name in found}
        metrics = dict.fromkeys(metric for means in ends.values() for metric in means)
        value: dict[str, object] = {
            "seed": seed,
            "steps": steps,
            "wall_seconds": wall_seconds,
            "peak_memory_bytes": peak_memory_bytes,
            "evaluation": {
                metric: {name: _as_json(means[metric]) for name, means in ends.items() if metric in means}
                for metric in metrics
            },
        }
        if watch is not None:
            value["watch"] = watch
        run_folder.write_json(self.folder / run_folder.SUMMARY, value)
        return value

    def close(self) -> None:
        """Close the trackers and the progress bar."""
        self._progress.close()
        for tracker in self._trackers:
            tracker.close()

    def _next_step(self) -> int:
        lines = run_folder.read_metrics(self._metrics)
        return lines[-1]["step"] + 1 if lines else 0

    def _show(self, step: int, name: str, media: Media, captions: Sequence[str]) -> None:
        for tracker in self._trackers:
            tracker.media(step, name, media, captions)


def intervals(result: Evaluated) -> dict[str, Interval]:
    """Return the mean of each metric with its 95 % interval, pictures of one prompt taken as one cluster."""
    return {metric: interval(score.tolist(), result.prompts) for metric, score in result.scores.items()}


def describe(found: Interval) -> str:
    """Return an interval as text, such as `0.312 [0.284, 0.341]`."""
    if math.isnan(found.low):
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _as_json(found: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(found).items()}


def _caption(result: Evaluated, row: int) -> str:
    scores = ", ".join(f"{metric} {score[row].item():.3g}" for metric, score in result.scores.items())
    return f"{scores} · {printable(result.prompts[row])}"
