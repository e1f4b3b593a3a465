"""`make race`: seconds an iteration and to ten points more, beside other trainers, in turn on this machine.

    python -m examples.benchmarks.race.run [--flow-factory CHECKOUT] [--iterations N] [--table PAGE] [key=value ...]

All contestants do one task (`Task`, which key=value changes), each in a process and an environment of its own:
`CHECKOUT/.venv` for the others. They take turns, an iteration each, and the order rotates, so that a busy minute meets
all of them. Before the first iteration and behind every `--every` each is measured on held-out prompts, which does not
count as time; one that has gained `--points` goes on, so that the others have the same machine to the end. A trainer of
which no checkout is given is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from examples.benchmarks.conditions import ROOT, code, conditions, load_average, said
from examples.benchmarks.gains_page import parts
from examples.benchmarks.race.task import Task

SECTION = "race"
OURS: dict[str, Sequence[str]] = {
    "visalign, equal work": (),
    "visalign, all rows in a call": ("source.prompts_per_call=null", "batch.microbatch=1024"),
    "visalign, a window that branches and a short tail": (
        "source.prompts_per_call=null",
        "batch.microbatch=1024",
        "source.shared_noise=true",
        "source.share_prefix=true",
        "source.window={type: branch, steps: [0, 1, 1]}",
        "source.tail=2",
        "objective={type: clipped_surrogate, clip: 1e-2, weight: equal}",
    ),
}
PEERS = {"flow_factory": "Flow-Factory"}
"""Modules beside this one that drive another trainer, and its name."""


@dataclass
class Racer:
    """A contestant at work.

    Attributes:
        name: Of it.
        process: Its process.
        log: What it says beside its answers.
        seconds: Of each iteration that counts.
        cpu: Seconds of processors, of the same.
        right: Share of pictures in which all is right, by the number of iterations that count.
    """

    name: str
    process: subprocess.Popen[str]
    log: Path
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    right: dict[int, float] = field(default_factory=dict)

    @classmethod
    def started(cls, name: str, command: Sequence[str], task: Mapping[str, Any], folder: Path) -> Racer:
        """Start a contestant and tell it its task."""
        log = folder / f"{name.replace(' ', '_')}.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(task["threads"]),
            "RACE_TOKENS": str(task["tokens"]),
        }
        with log.open("w") as said_beside:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said_beside,
                text=True,
                env=environment,
                cwd=ROOT,
            )
        racer = cls(name, process, log)
        racer.ask(json.dumps(task))
        return racer

    def ask(self, word: str) -> dict[str, Any]:
        """Return its answer to a word.

        Raises:
            SystemExit: If it has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            self.end()
            last = self.log.read_text().strip().splitlines()[-1:] or ["it said nothing"]
            raise SystemExit(f"{self.name} has ended: {last[0]} (all of it in {self.log})")
        return json.loads(line)

    def end(self) -> None:
        """Say no more to it, and wait until it has left."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def reached(self, points: float) -> float | None:
        """Return the seconds of iterations to so many points more than at the start; None if it did not come there."""
        at = next((done for done, right in self.right.items() if 100 * (right - self.right[0]) >= points), None)
        return None if at is None else sum(self.seconds[:at])


def race(racers: Sequence[Racer], iterations: int, every: int, points: float) -> None:
    """Let them take turns until all have gained so many points, or the iterations are over."""
    for racer in racers:
        racer.right[0] = racer.ask("measure")["strict"]
        racer.ask("iterate")  # warms up, and is not counted
    for done in range(iterations):
        first = done % len(racers)
        for racer in (*racers[first:], *racers[:first]):
            answer = racer.ask("iterate")
            racer.seconds.append(answer["seconds"])
            racer.cpu.append(answer["cpu"])
        if every and (done + 1) % every == 0:
            for racer in racers:
                racer.right[done + 1] = racer.ask("measure")["strict"]
            if all(racer.reached(points) is not None for racer in racers):
                return


def lines(racers: Sequence[Racer], points: float) -> list[str]:
    """Return a table in Markdown, a row for each contestant."""
    reference = statistics.median(racers[0].seconds)
    table = [
        f"| | seconds an iteration | against {racers[0].name} | CPU | right before | seconds to +{points:g} points |",
        "|---|---|---|---|---|---|",
    ]
    for racer in racers:
        median, reached = statistics.median(racer.seconds), racer.reached(points)
        last = 100 * (list(racer.right.values())[-1] - racer.right[0])
        told = f"{reached:.0f}" if reached is not None else f"{last:+.1f} after {sum(racer.seconds):.0f} s"
        shown = f"{median:.3f} | {median / reference:.2f} | {statistics.median(racer.cpu):.3f} | {racer.right[0]:.1%}"
        table.append(f"| {racer.name} | {shown} | {told} |")
    return table


def peers(given: argparse.Namespace) -> tuple[dict[str, list[str]], list[str]]:
    """Return the commands of those whose checkouts are given, and what is to be said of the others."""
    commands, left = {}, []
    for module, name in PEERS.items():
        checkout, option = vars(given)[module], f"--{module.replace('_', '-')}"
        if checkout is None:
            left.append(f"{name} is left out: no checkout was given ({option})")
            continue
        python = checkout.absolute() / ".venv" / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"{option}: {checkout} has no environment of its own: there is no {python}")
        revision = subprocess.run(
            ["git", "-C", checkout, "log", "-1", "--format=%h of %as"], capture_output=True, text=True
        )
        told = revision.stdout.strip()
        command = [str(python), "-m", f"examples.benchmarks.race.{module}", str(checkout.absolute())]
        commands[f"{name}{f' ({told})' if told else ''}"] = command
    return commands, left


def task_of(words: Sequence[str]) -> dict[str, Any]:
    """Return the task with `key=value` words laid over it.

    Raises:
        SystemExit: If a task has no such key.
    """
    task = dataclasses.asdict(Task())
    for word in words:
        key, _, value = word.partition("=")
        if key not in task:
            raise SystemExit(f"{word}: a task has {', '.join(task)}")
        task[key] = yaml.safe_load(value)
    return task


def main(argv: Sequence[str] | None = None) -> None:
    """Do what these words ask for; None: those of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", default=[], metavar="key=value", help="of the task")
    for module in PEERS:
        parser.add_argument(f"--{module.replace('_', '-')}", type=Path, help="a checkout with an environment in .venv")
    parser.add_argument("--iterations", type=int, default=400, help="at most")
    parser.add_argument("--every", type=int, default=10, help="iterations from one measurement to the next; 0 for none")
    parser.add_argument("--points", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/race"))
    parser.add_argument("--table", type=Path, help="a page of Markdown")
    given = parser.parse_args(argv)
    task = task_of(given.words)
    theirs, left = peers(given)
    given.folder.mkdir(parents=True, exist_ok=True)
    ours = {name: [sys.executable, "-m", "examples.benchmarks.race.ours", *more] for name, more in OURS.items()}
    under, before = conditions(), load_average()
    racers: list[Racer] = []
    try:
        for name, command in {**ours, **theirs}.items():
            racers.append(Racer.started(name, command, task, given.folder))
        race(racers, given.iterations, given.every, given.points)
    finally:
        for racer in racers:
            racer.end()
    told = {racer.name: {"seconds": racer.seconds, "cpu": racer.cpu, "right": racer.right} for racer in racers}
    (given.folder / "race.json").write_text(json.dumps({"task": task, "conditions": under, **told}, indent=1))
    samples, count = task["prompts"] * task["group"], len(racers[0].seconds)
    below = (
        f"{count} iterations of {samples} samples of {task['steps']} steps, {task['window']} of them trained, "
        f"{task['updates']} updates, float32, {task['threads']} threads; {said({**under, 'load': before})}, "
        f"{load_average():.1f} after; {code()}."
    )
    page = [*lines(racers, given.points), "", below, *left]
    print("\n".join(page))
    if given.table is not None:
        start, _, end = parts(given.table, SECTION)
        given.table.write_text("\n".join((start, *page, end)), encoding="utf-8")


if __name__ == "__main__":
    main()
