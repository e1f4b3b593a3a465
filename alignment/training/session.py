"""Training, from a config file to a run's folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from alignment.checkpoints.artifacts import Card, write_artifacts
from alignment.checkpoints.checkpoint import AUTO, Checkpoints
from alignment.checkpoints.state import (
    TrainState,
    check_fits,
    check_same_contents,
    check_same_run,
    read_state,
    restore,
    write_state,
)
from alignment.config import build
from alignment.config.run import Run
from alignment.data.batches import Batch, Experience
from alignment.errors import Alarmed, EndedElsewhere, OutOfMemory, ProcessLost, Stopped
from alignment.policy.prepared import check_same_finds
from alignment.reports import run_folder
from alignment.reports.pictures import heat
from alignment.reports.record import Recorder
from alignment.reports.run_folder import CREDIT
from alignment.reports.table import before_after
from alignment.reports.terminal import show
from alignment.reports.trackers import open_trackers
from alignment.training.evaluation import Evaluator
from alignment.training.folder_guard import holds_something, move_aside, refuse_run
from alignment.training.loop import Trainer
from alignment.training.resuming import of_today, refuse_fewer_steps, where_from
from alignment.training.runtime.runtime import Runtime, peak_memory
from alignment.training.sameness import check_same_start
from alignment.training.setup import load
from alignment.training.stopping import StopSignal
from alignment.training.watch import Watching, WentBack, watching
from reward_models.base import RewardError

MICROBATCH = "microbatch"
"""Name of what the state keeps of it beside what was found out about the pipeline."""


def train(run: Run, resume: str | None = None, least_seconds: float | None = None) -> None:
    """Train a checked run on the processes that were launched, from the start or from a checkpoint.

    Args:
        run: The run.
        resume: "latest", or a checkpoint folder to continue from; "auto" is the latest if there is one, and else the
            start, for launchers that start a run again by themselves.
        least_seconds: Of a step, were its GPUs at their peak all the time; the record then says how near it came.
    """
    with StopSignal() as stop:
        runtime = Runtime(run, stop)
        try:
            with runtime.world.united():
                begin(run, runtime, stop, resume, least_seconds)
        finally:
            runtime.close()


def begin(run: Run, runtime: Runtime, stop: StopSignal, resume: str | None, least_seconds: float | None = None) -> None:
    """Train on the processes of `runtime`, from the start or from a checkpoint."""
    folder = Path(run.output.folder) / run.name
    resolved = build.resolved(run)
    config = yaml.safe_load(resolved)
    checkpoints = Checkpoints(folder, run.output.keep, config, runtime.world.processes)
    check_same_start(runtime.world, config)
    afresh = run.output.overwrite or resume == AUTO  # without a checkpoint there is nothing that could be lost
    try:
        path = where_from(resume, checkpoints, runtime)
        state = None if path is None else read_state(path)
        if state is not None:
            check_same_run(of_today(state.config), config, state.contents)
            refuse_fewer_steps(run, state.step)
        elif runtime.main and not afresh:
            refuse_run(folder)
        # A run that cannot be loaded leaves no trace on the disk.
        trainer = load(run, runtime, None if state is None else state.found.get(MICROBATCH))
        if state is not None:
            check_same_contents(state.contents, trainer.contents)
        if runtime.main:
            if state is None and holds_something(folder):
                checkpoints.prepare()  # refuses a folder in which another process works
                move_aside(folder)
                checkpoints.close()
            checkpoints.prepare()
        runtime.wait()
        Session(trainer, checkpoints, resolved, stop, least_seconds).train(state)
    finally:
        checkpoints.close()


@dataclass
class Session:
    """One process's work on a run: train, measure, record, save.

    Attributes:
        trainer: The run, loaded.
        checkpoints: Where it saves.
        resolved: The config as YAML.
        stop: Set when the process was asked to leave.
        least_seconds: Of a step, were its GPUs at their peak all the time; None where nobody knows.
    """

    trainer: Trainer
    checkpoints: Checkpoints
    resolved: str
    stop: StopSignal
    least_seconds: float | None = None
    _start: float = field(default_factory=time.perf_counter)
    _spent: float = 0.0
    _saving: float = 0.0
    _done: int = 0
    _taken: int = 0
    _saved: int | None = None
    _table: Mapping[str, Any] = field(default_factory=dict)
    _recorder: Recorder | None = None
    _evaluator: Evaluator | None = None
    _watch: Watching | None = None

    @functools.cached_property
    def _rate(self) -> float:
        """The learning rate of the config."""
        return self.trainer.run.optimizer.learning_rate

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        """The resolved config as the checkpoints, the card and the trackers keep it."""
        return yaml.safe_load(self.resolved)

    @functools.cached_property
    def _found(self) -> Mapping[str, object]:
        """What was found out about the pipeline."""
        prepared = self.trainer.policy.prepared
        return {} if prepared is None else prepared.as_json()

    def train(self, state: TrainState | None) -> None:
        """Train from the start or from the state of a checkpoint, and leave a report.

        Raises:
            Stopped: If the process was asked to leave; the run can be resumed.
            RewardError: If the reward failed; what was learned before is saved, and the run can be resumed.
        """
        run, runtime = self.trainer.run, self.trainer.runtime
        if state is not None:
            self._restore(state)
        first, folder = self._done, self.checkpoints.folder
        if runtime.main:
            run_folder.write_atomically(folder / run_folder.CONFIG, self.resolved.encode())
            trackers = open_trackers(run.output.report_to, folder, self._config)
            shown = run.objective.headline
            self._recorder = Recorder(
                folder, total_steps=run.steps, trackers=trackers, found=self._found, headline=shown
            )
            show(str(self.trainer.policy.prepared))
            self._recorder.resume_at(first)
        self._watch = watching(self.trainer, self.checkpoints.folder, first)
        self._slow_down()
        try:
            if state is None:
                self._evaluate(run_folder.BASE, 0, run.evaluation.images_per_prompt)
            self._leave_if_asked()
            self._fit(first)
            self._evaluate(run_folder.FINAL, run.steps, run.evaluation.images_per_prompt)
            self._finish()
        except (RewardError, OutOfMemory, ProcessLost, Stopped, EndedElsewhere) as error:
            if saved := runtime.world.part(error, self._save_what_is_whole):
                error.args = (f"{error}. {saved}",)
            raise
        finally:
            if self._recorder is not None:
                self._recorder.close()

    def _after(self, step: int, experience: Experience[Batch], metrics: dict[str, float]) -> None:
        run, done = self.trainer.run, step + 1
        self._done, self._taken = done, self.trainer.runtime.taken
        begin = time.perf_counter()
        if run.evaluation.every and done % run.evaluation.every == 0 and done < run.steps:
            self._evaluate(f"step-{done:06d}", done, run.evaluation.curve_images_per_prompt)
            if self._recorder is not None and len(experience.media):
                shown = experience.prompts, experience.rewards
                self._recorder.samples("train", done, experience.media, *shown)
                if experience.maps is not None:
                    self._recorder.samples(CREDIT, done, heat(experience.media, experience.maps), *shown)
        metrics["seconds/evaluation"] = time.perf_counter() - begin
        metrics["seconds/checkpoint"] = self._saving
        if self.least_seconds is not None:
            metrics["mfu"] = self.least_seconds / metrics["seconds/total"]
        # Told before it is saved: a process that dies in between resumes further back and tells the step again. The
        # other way round, a step would be missing.
        if self._recorder is not None:
            self._recorder.step(step, metrics)
        self.checkpoints.heed()
        if done == run.steps or (run.output.save_every and done % run.output.save_every == 0):
            self._save_once()
        self._heed_watch(done)
        self._leave_if_asked()

    def _fit(self, first: int) -> None:
        """Train to the last step; where the watch has the run go back, on from there."""
        heeded = False
        while True:
            try:
                if not heeded:  # a run may have died between an alarm and what was to be done about it
                    self._heed_watch(first)
                self.trainer.fit(first, self._after)
            except WentBack:
                first, heeded = self._done, True
            else:
                return

    def _heed_watch(self, done: int) -> None:
        """Keep the best checkpoint, and do what the alarm of this step's evaluation asks for.

        Raises:
            Alarmed: If the run is to stop.
            WentBack: If it goes on from the best checkpoint.
        """
        watch, step = self._watch, None if self._watch is None else self._watch.best
        if watch is None or step is None:
            return
        self.checkpoints.best, todo = step, watch.todo(done)
        if step == done or todo == "stop":
            self._save_once()
        best = self.checkpoints.folder / f"checkpoint-{step}"
        if todo == "stop":
            self.checkpoints.settle()
            alarm = watch.alarms[-1]
            raise Alarmed(
                f"stopped by the watch: {alarm}. The best is {best}; --resume latest watch.on_alarm=warn goes on"
            )
        if todo == "rollback":
            self.checkpoints.settle()
            self.trainer.runtime.wait()
            self._take(read_state(best))
            self._slow_down()
            raise WentBack

    def _slow_down(self) -> None:
        """Learn at the pace of the watch."""
        if self._watch is not None:
            run = self.trainer.run
            rate = self._watch.settings.slower**self._watch.went_back * self._rate
            self.trainer = replace(self.trainer, run=replace(run, optimizer=replace(run.optimizer, learning_rate=rate)))

    def _leave_if_asked(self) -> None:
        if not self.trainer.runtime.any(self.stop.received is not None):
            return
        self._save_once()
        self.checkpoints.settle()
        stopped = Stopped(f"stopped after {self._done} of {self.trainer.run.steps} steps")
        if self.stop.received is not None:
            stopped.exit_code = 128 + self.stop.received
        raise stopped

    def _save_what_is_whole(self, able: bool) -> str:
        """Save the last step, unless a part of the next one was learned on top of it; return what is there."""
        runtime = self.trainer.runtime
        whole = runtime.taken == self._taken
        if able:
            whole = all(runtime.world.each(whole)) if runtime.world.spread else whole
            if whole and self._done:
                self._save_once()
            lost = "" if whole else "A step that is learned by half is not saved; "
        else:
            lost = "What several processes hold can be saved by all of them only; "
        self.checkpoints.settle()
        if self._saved is None:
            return lost and f"{lost}there is no checkpoint before it"
        return f"{lost}{self.checkpoints.folder / f'checkpoint-{self._saved}'} is saved; continue with --resume latest"

    def _save_once(self) -> None:
        if self._saved != self._done:
            self._save(self._done)

    def _evaluate(self, name: str, step: int, images_per_prompt: int) -> None:
        run = self.trainer.run
        if self.trainer.held_out is None:
            return
        if self._evaluator is None:
            assert run.measure is not None  # `checks` refuses a run without
            sights = None if self._watch is None else self._watch.sights
            self._evaluator = Evaluator(run.evaluation, self.trainer.held_out, run.measure, sights)
        weights = "ema" if "ema" in self.trainer.policy.snapshots else "live"
        with self.trainer.doing("evaluation", step):
            result = self._evaluator(self.trainer.context(step), images_per_prompt, weights)
        if self._recorder is not None:
            self._recorder.evaluation(name, step, result)
        alarm = None if self._watch is None else self._watch.look(step, result, last=name == run_folder.FINAL)
        if self._recorder is not None and self._watch is not None and alarm is not None:
            self._recorder.alarm([asdict(one) for one in self._watch.alarms], f"watch: {alarm} ({alarm.did})")

    def _save(self, done: int) -> None:
        self._saved = done
        policy, runtime = self.trainer.policy, self.trainer.runtime
        world = runtime.world
        if self._recorder is None and not world.spread:
            return
        begin = time.perf_counter()
        state = TrainState(
            step=done,
            trainable={name: p.detach() for name, p in policy.trainable.items()},
            moments=runtime.moments(),
            snapshots=policy.snapshots,
            wall_seconds=self._seconds(),
            config=self._config,
            contents=self.trainer.contents,
            found={**self._found, MICROBATCH: self.trainer.run.batch.rows},
            scaling={} if runtime.scale is None else asdict(runtime.scale),
        )

        def write(folder: Path) -> None:
            """Write into the folder of the main process, which the others are told here."""
            if world.spread:
                folder = world.everyone(folder)[0]
            with world.exchange("saving a checkpoint") if world.spread else nullcontext():
                write_state(folder, state, writes=runtime.main)
                with policy.using("ema" if "ema" in policy.snapshots else "live"):
                    card = Card(self._config, done, self._table, base=state.contents["policy.pipeline"])
                    write_artifacts(folder, policy.pipe, policy.weights, card, writes=runtime.main)

        if runtime.main:
            self.checkpoints.begin(done, write)
        else:
            write(self.checkpoints.folder)
        self._saving = time.perf_counter() - begin

    def _restore(self, state: TrainState) -> None:
        self._take(state)
        self._spent = state.wall_seconds
        self._done = self._saved = state.step

    def _take(self, state: TrainState) -> None:
        """Fill weights, copies and moments with those of a checkpoint."""
        policy, runtime = self.trainer.policy, self.trainer.runtime
        moments = runtime.moments()
        check_fits(state, policy.trainable, policy.snapshots, moments)
        check_same_finds({name: found for name, found in state.found.items() if name != MICROBATCH}, self._found)
        live = {name: parameter.detach() for name, parameter in policy.trainable.items()}
        restore(state, live, policy.snapshots, moments)
        if runtime.scale is not None:
            runtime.scale = replace(runtime.scale, **state.scaling)

    def _seconds(self) -> float:
        return self._spent + time.perf_counter() - self._start

    def _finish(self) -> None:
        run = self.trainer.run
        if self._recorder is None:
            self._save(run.steps)
            return
        summary = self._recorder.summary(
            seed=run.seed,
            steps=run.steps,
            wall_seconds=self._seconds(),
            peak_memory_bytes=peak_memory(self.trainer.policy.device),
            watch=None if self._watch is None else self._watch.told(),
        )
        table = summary["evaluation"]
        assert isinstance(table, dict)
        self._table = table
        self._save(run.steps)
        self.checkpoints.settle()
        from alignment.reports import report  # matplotlib takes a second to import

        path = report.write(self.checkpoints.folder)
        self._recorder.close()
        checkpoint = self.checkpoints.folder / f"checkpoint-{run.steps}"
        lines = [before_after(summary)] if self._table else []
        if self._watch is not None:
            lines.append(self._watch.ending(self.checkpoints.folder))
        show("\n".join([*lines, f"checkpoint: {checkpoint}", f"report:     {path}"]))
