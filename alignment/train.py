"""Training, from a config file to a run's folder: `visalign train`, `accelerate launch -m alignment.train`, torchrun."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from alignment import checks, config, report, run_folder
from alignment.artifacts import Card, write_artifacts
from alignment.batches import Batch, Experience
from alignment.checkpoint import Checkpoints
from alignment.data import Prompts, read_prompts
from alignment.draw import Draw
from alignment.errors import ConfigError, Stopped
from alignment.evaluation import Evaluator
from alignment.loop import Trainer
from alignment.policy import Policy
from alignment.record import Recorder
from alignment.run import Run
from alignment.runtime import Runtime, peak_memory
from alignment.state import TrainState, check_same_run, read_state, write_state
from alignment.stopping import StopSignal
from alignment.table import before_after
from alignment.trackers import open_trackers


def main(path: str, overrides: Sequence[str], *, resume: str | None = None) -> int:
    """Train as the config says, and return the exit code.

    Args:
        path: Config file.
        overrides: `key=value` words laid over it.
        resume: "latest", or a checkpoint folder to continue from.
    """
    run = config.load(path, overrides)
    checks.check(run, checks.processes())
    runtime = Runtime(run)
    folder = Path(run.output.folder) / run.name
    resolved = config.resolved(run)
    checkpoints = Checkpoints(folder, run.output.keep, yaml.safe_load(resolved), runtime.world.size)
    if runtime.main:
        if resume is None:
            make_room(folder, overwrite=run.output.overwrite)
        checkpoints.prepare()
    runtime.wait()
    try:
        with StopSignal() as stop:
            session = Session(load(run, runtime), checkpoints, resolved, stop)
            session.train(resume)
    finally:
        checkpoints.close()
        runtime.close()
    return 0


def load(run: Run, runtime: Runtime) -> Trainer:
    """Return the trainer of a run: prompts read, pipeline loaded and probed, prompts embedded, copies kept."""
    prompts = read_prompts(run.data.prompts, run.data.dedupe)
    held_out = () if run.evaluation.prompts is None else read_prompts(run.evaluation.prompts).texts
    runtime.world.scorer(run.source.reward)
    policy = Policy(run.policy, device=runtime.world.device, seed=Draw(run.seed).key("adapters"))
    policy.prepare(prompts.texts + held_out)
    for name in copies(run):
        policy.keep(name)
    runtime.attach(policy, run.optimizer)
    return Trainer(run, policy, runtime, prompts)


def copies(run: Run) -> tuple[str, ...]:
    """Return the frozen copies of the trained weights that a run keeps."""
    names = set(run.objective.snapshots) | {run.source.weights} - {"live"}
    return tuple(sorted(names | ({"ema"} if run.snapshots.ema > 0 else set())))


def make_room(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run, or move it aside.

    Raises:
        ConfigError: If there is a run and it may not be moved.
    """
    if not folder.is_dir() or not any(path.name != ".lock" for path in folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"{folder} exists: continue it with --resume latest, choose another name with name=NAME, or move it aside "
            "with output.overwrite=true"
        )
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.old-{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}.old-{number}"))


@dataclass
class Session:
    """One process's work on a run: train, measure, record, save.

    Attributes:
        trainer: The run, loaded.
        checkpoints: Where it saves.
        resolved: The config as YAML.
        stop: Set when the process was asked to leave.
    """

    trainer: Trainer
    checkpoints: Checkpoints
    resolved: str
    stop: StopSignal
    _start: float = field(default_factory=time.perf_counter)
    _spent: float = 0.0
    _table: Mapping[str, Any] = field(default_factory=dict)
    _recorder: Recorder | None = None
    _evaluator: Evaluator | None = None

    def train(self, resume: str | None) -> None:
        """Train from the start or from a checkpoint, and leave a report.

        Raises:
            Stopped: If the process was asked to leave; the run can be resumed.
        """
        run, runtime = self.trainer.run, self.trainer.runtime
        first = 0 if resume is None else self._restore(resume)
        folder = self.checkpoints.folder
        if runtime.main:
            run_folder.write_atomically(folder / run_folder.CONFIG, self.resolved.encode())
            trackers = open_trackers(run.output.report_to, folder, yaml.safe_load(self.resolved))
            self._recorder = Recorder(folder, total_steps=run.steps, trackers=trackers)
            self._recorder.resume_at(first)
        try:
            self._evaluate(run_folder.BASE, 0, run.evaluation.images_per_prompt)
            self.trainer.fit(first, self._after)
            self._evaluate(run_folder.FINAL, run.steps, run.evaluation.images_per_prompt)
            self._finish()
        finally:
            if self._recorder is not None:
                self._recorder.close()

    def _after(self, step: int, experience: Experience[Batch], metrics: dict[str, float]) -> None:
        run, done = self.trainer.run, step + 1
        begin = time.perf_counter()
        if run.evaluation.every and done % run.evaluation.every == 0 and done < run.steps:
            self._evaluate(f"step-{done:06d}", done, run.evaluation.curve_images_per_prompt)
            if self._recorder is not None:
                self._recorder.samples("train", done, experience.media, experience.prompts, experience.rewards)
        evaluated = time.perf_counter()
        stopping = self.trainer.runtime.any(self.stop.received is not None)
        if stopping or (run.output.save_every and done % run.output.save_every == 0):
            self._save(done)
        metrics["seconds/evaluation"] = evaluated - begin
        metrics["seconds/checkpoint"] = time.perf_counter() - evaluated
        if self._recorder is not None:
            self._recorder.step(step, metrics)
        if stopping:
            raise self._stopped(done)

    def _stopped(self, done: int) -> Stopped:
        stopped = Stopped(
            f"stopped after {done} of {self.trainer.run.steps} steps; {self.checkpoints.folder / f'checkpoint-{done}'} is "
            "saved; continue with --resume latest"
        )
        if self.stop.received is not None:
            stopped.exit_code = 128 + self.stop.received
        return stopped

    def _evaluate(self, name: str, step: int, images_per_prompt: int) -> None:
        run = self.trainer.run
        if run.evaluation.prompts is None:
            return
        if self._evaluator is None:
            reward = run.evaluation.reward or run.source.reward
            self._evaluator = Evaluator(run.evaluation, read_prompts(run.evaluation.prompts), reward)
        known = run_folder.read_evaluations(self.checkpoints.folder)
        if name == run_folder.BASE and name in known:
            return
        weights = "ema" if "ema" in self.trainer.policy.snapshots else "live"
        result = self._evaluator(self.trainer.context(step), images_per_prompt, weights)
        if self._recorder is not None:
            self._recorder.evaluation(name, step, result)

    def _save(self, done: int) -> None:
        if self._recorder is None:
            return
        run, policy = self.trainer.run, self.trainer.policy
        state = TrainState(
            step=done,
            trainable={name: p.detach() for name, p in policy.trainable.items()},
            optimizer=self.trainer.runtime.optimizer.state_dict(),
            snapshots=policy.snapshots,
            wall_seconds=self._seconds(),
            config=yaml.safe_load(self.resolved),
        )

        def write(folder: Path) -> None:
            write_state(folder, state)
            with policy.using("ema" if "ema" in policy.snapshots else "live"):
                card = Card(yaml.safe_load(self.resolved), done, self._table)
                write_artifacts(folder, policy.pipe, policy.component, lora=run.policy.lora is not None, card=card)

        self.checkpoints.save(done, write)

    def _restore(self, resume: str) -> int:
        """Load a checkpoint and return the steps it had done."""
        state = read_state(self.checkpoints.find(resume))
        check_same_run(state.config, yaml.safe_load(self.resolved))
        policy, runtime = self.trainer.policy, self.trainer.runtime
        with torch.no_grad():
            for name, parameter in policy.trainable.items():
                parameter.copy_(state.trainable[name])
            for copy, weights in state.snapshots.items():
                for name, tensor in weights.items():
                    policy.snapshots[copy][name].copy_(tensor)
        runtime.optimizer.load_state_dict(dict(state.optimizer))
        self._spent = state.wall_seconds
        return state.step

    def _seconds(self) -> float:
        return self._spent + time.perf_counter() - self._start

    def _finish(self) -> None:
        if self._recorder is None:
            return
        run = self.trainer.run
        summary = self._recorder.summary(
            seed=run.seed,
            steps=run.steps,
            wall_seconds=self._seconds(),
            peak_memory_bytes=peak_memory(self.trainer.policy.device),
        )
        self._table = summary["evaluation"]
        self._save(run.steps)
        path = report.write(self.checkpoints.folder)
        self._recorder.close()
        print(before_after(summary))
        print(f"checkpoint: {self.checkpoints.folder / f'checkpoint-{run.steps}'}")
        print(f"report:     {path}")


if __name__ == "__main__":
    from alignment import cli

    sys.exit(cli.run(["train", *sys.argv[1:]]))
