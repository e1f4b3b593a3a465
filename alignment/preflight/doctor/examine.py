"""`visalign doctor`: do the laws of training hold on this very run? A line each, the measured number and its bound.

`--snr` and `--shuffle` measure instead (`alignment.preflight.doctor.snr`, `alignment.preflight.doctor.shuffle`).
Nothing here changes a weight or touches the run's folder; pictures of a measurement go to
`<output.folder>/<name>.doctor/`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from rich.markup import escape
from rich.table import Table
from transformers.utils import logging as transformers_logging

from alignment.config import build, checks
from alignment.config.run import Run
from alignment.errors import ConfigError, VisalignError
from alignment.preflight.doctor import (
    laws_of_learning,
    laws_of_speed,
    laws_of_the_pipeline,
    laws_of_the_run,
    shuffle,
    snr,
)
from alignment.preflight.doctor.plain_run import plain_run
from alignment.preflight.doctor.subject import Finding, NotApplicable, Subject, at_most
from alignment.preflight.scored import load_scored
from alignment.reports.console import Console
from alignment.reports.terminal import show
from alignment.training import setup
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from reward_models.base import RewardError
from reward_models.foreign import out_of_memory
from samplers.errors import SamplingError

Law = Callable[[Subject], Finding]
LAWS: tuple[Law, ...] = (
    laws_of_the_run.geometry,
    laws_of_the_run.disk_space,
    laws_of_the_run.prompt_length,
    laws_of_the_run.reward_knows_its_answers,
    laws_of_the_run.reward_repeats,
    laws_of_the_run.reward_of_a_batch,
    laws_of_the_run.reward_speaks,
    laws_of_the_run.pipeline_repeats,
    laws_of_the_run.zero_noise_parity,
    laws_of_the_run.step_formula,
    laws_of_the_run.adapter_binds,
    laws_of_the_run.training_changes_the_output,
    laws_of_the_run.reference_is_adapter_off,
    laws_of_learning.noise_at_trained_steps,
    laws_of_learning.reward_spread,
    laws_of_learning.actions_follow_their_density,
    laws_of_learning.log_probability,
    laws_of_learning.first_ratio,
    laws_of_speed.compilation_pays,
    laws_of_learning.replay_runs_what_it_trains,
    laws_of_learning.times_of_rows,
    laws_of_learning.gradient_reaches_all,
    laws_of_learning.objective_pulls,
    laws_of_learning.zero_credit_zero_gradient,
    laws_of_learning.flipped_credit_flipped_gradient,
    laws_of_learning.a_step_down_lowers_the_loss,
    laws_of_learning.kl_term_pulls,
    laws_of_learning.microbatches_add_up,
    laws_of_the_run.checkpoint_reopens,
)
"""What is looked at, in this order: what a law needs comes before it."""

MARKS = {
    "pass": "[green]pass[/]",
    "warning": "[yellow]warning[/]",
    "FAIL": "[bold red]FAIL[/]",
    "skipped": "[dim]skipped[/]",
}


def main(
    config_path: str | None,
    overrides: Sequence[str],
    *,
    pipeline: str | None = None,
    call: Sequence[str] = (),
    snr: bool = False,
    shuffle: bool = False,
    as_json: bool = False,
) -> int:
    """Examine a run, or a pipeline alone, print what was found, and return 1 if something is wrong, else 0.

    Args:
        config_path: Config file; None with `pipeline`.
        overrides: `key=value` words laid over it. In a measurement `steps=N` is how many batches or updates it takes.
        pipeline: Folder or hub id of a pipeline to examine without a config.
        call: Arguments of that pipeline's `__call__`, each `name=value` or a YAML file of several.
        snr: Measure the gradient's signal-to-noise ratio at each step, in place of the laws.
        shuffle: Measure the damage of shuffled advantages, in place of the laws.
        as_json: Print one JSON object in place of tables.

    Raises:
        VisalignError: If the run cannot be loaded at all, as training would not.
    """
    if call and pipeline is None:
        raise ConfigError("--call is for --pipeline PATH; a config says how its pipeline is called in policy.call")
    if pipeline is not None and (snr or shuffle):
        raise ConfigError("--snr and --shuffle measure a reward's signal, and a pipeline alone has none: give a CONFIG")
    with tempfile.TemporaryDirectory() as temporary:
        if pipeline is not None:
            plain = plain_run(pipeline, call, overrides, Path(temporary))
            found, failed = _laws(plain, laws_of_the_pipeline.CHECKS, quiet=as_json)
        else:
            assert config_path is not None
            if snr or shuffle:
                found, failed = _measure(config_path, overrides, snr, shuffle, quiet=as_json)
            else:
                found, failed = _laws(load_scored(config_path, overrides, "the doctor"), LAWS, quiet=as_json)
    if as_json:
        show(json.dumps(found, indent=2))
    return int(failed)


def examine(
    trainer: Trainer, resolved: str, report: Callable[[Finding], None], laws: Sequence[Law] | None = None
) -> list[Finding]:
    """Look at every law and return what was found; the policy is left as it was, bit for bit.

    Args:
        trainer: A loaded run.
        resolved: Its config as YAML.
        report: Called with each finding as it comes.
        laws: What to look at; null means `LAWS`.
    """
    subject = Subject(trainer, resolved)
    before = fingerprint(trainer)
    findings: list[Finding] = []
    for law in LAWS if laws is None else laws:
        findings.append(look(law, subject))
        report(findings[-1])
    changed = sum(before[name] != now for name, now in fingerprint(trainer).items())
    says = f"tensors that the examination changed, of {len(before)}"
    last = at_most(float(changed), 0, says, "a law did not undo its change")
    findings.append(replace(last, law="left as it was"))
    report(findings[-1])
    return findings


def look(law: Law, subject: Subject) -> Finding:
    """Return what a law came to; one that breaks down does not hold."""
    start = time.perf_counter()
    finding = _look(law, subject)
    return replace(finding, law=law.__name__.replace("_", " "), seconds=time.perf_counter() - start)


def _look(law: Law, subject: Subject) -> Finding:
    broken = _Breakdown(subject)
    with broken:
        return law(subject)
    return broken.finding


class _Breakdown:
    """A law that breaks down, whoever's fault it is, does not hold: the examination says how, and goes on."""

    finding = Finding("FAIL")

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception) or out_of_memory(error):
            return False
        if isinstance(error, NotApplicable):
            self.finding = Finding("skipped", says=str(error))
            return True
        for p in self._subject.policy.trainable.values():
            p.grad = None
        first_line = (str(error).splitlines() or [""])[0]
        deliberate = isinstance(error, VisalignError | RewardError | SamplingError)
        self.finding = Finding("FAIL", cause=first_line if deliberate else f"{type(error).__name__}: {first_line}")
        return True


def fingerprint(trainer: Trainer) -> dict[str, int]:
    """Return the sum of the bytes of every tensor of the denoiser and of the frozen copies."""
    tensors = dict(trainer.policy.denoiser.state_dict())
    tensors |= {f"{copy}/{key}": z for copy, kept in trainer.policy.snapshots.items() for key, z in kept.items()}
    return {
        name: int(z.detach().contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64))
        for name, z in tensors.items()
    }


# ---- what main does --------------------------------------------------------------------------------------------------


def _laws(run: Run, laws: Sequence[Law], *, quiet: bool) -> tuple[Mapping[str, Any], bool]:
    start = time.perf_counter()
    trainer, close = load(run)
    resolved = build.resolved(run)
    console = Console(highlight=False, quiet=quiet)
    try:
        console.print(f"{run.name}: {type(trainer.policy.pipe).__name__}, {trainer.policy.rounds} steps", markup=False)
        with console.status("looking ..."):
            findings = examine(trainer, resolved, lambda f: None, laws)
    finally:
        close()
    console.print(_table(findings))
    failed = [f.law for f in findings if f.outcome == "FAIL"]
    seconds = time.perf_counter() - start
    verdict = f"{len(failed)} of {len(findings)} laws do not hold: {', '.join(failed)}" if failed else "all laws hold"
    console.print(f"{verdict} ({seconds:.0f} s)", markup=False)
    report = {"name": run.name, "healthy": not failed, "seconds": seconds, "findings": [asdict(f) for f in findings]}
    return report, bool(failed)


def _measure(
    path: str, overrides: Sequence[str], with_snr: bool, with_shuffle: bool, *, quiet: bool
) -> tuple[Mapping[str, Any], bool]:
    counts = [word for word in overrides if word.startswith("steps=")]
    run = load_scored(path, [word for word in overrides if word not in counts], "the doctor")
    count = load_scored(path, overrides, "the doctor").steps if counts else None
    folder = Path(run.output.folder) / f"{run.name}.doctor"
    folder.mkdir(parents=True, exist_ok=True)
    trainer, close = load(run)
    console, found, failed = Console(highlight=False, quiet=quiet), {}, False
    try:
        if with_snr:
            signal = snr.measure(trainer, count)
            signal.show(console)
            found["snr"] = signal.save(folder)
        if with_shuffle:
            damage = shuffle.measure(trainer, count)
            damage.show(console)
            found["shuffle"], failed = damage.save(folder), damage.too_high
    finally:
        close()
    return {"name": run.name, **found}, failed


def load(run: Run) -> tuple[Trainer, Callable[[], None]]:
    """Return the trainer of a run, and what to call when done with it; loading says nothing on the way."""
    if checks.processes() > 1:
        raise ConfigError("the doctor sees one process at a time; start it without a launcher")
    checks.check(run, 1)
    # What the libraries say of loading would stand between the lines of the table.
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    runtime = Runtime(run)
    trainer = setup.load(run, runtime)
    trainer.policy.weights.samplers = []  # the laws are of the weights that are trained
    return trainer, runtime.close


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("law", "", "measured", "bound", "what"):
        number = heading in ("measured", "bound")
        table.add_column(heading, justify="right" if number else "left", no_wrap=heading != "what")
    for f in findings:
        what = escape(f.says)
        if f.outcome in ("FAIL", "warning"):
            what = f"{what}\n[bold]{escape(f.cause)}[/]".strip()
        table.add_row(f.law, MARKS[f.outcome], "" if f.value is None else f"{f.value:.3g}", f.bound, what)
    return table
