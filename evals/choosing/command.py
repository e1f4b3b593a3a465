"""`visalign generate`: pictures of a pipeline, a run or a pipeline with adapters; the best of several, if asked for."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table as Shown

from alignment.config.device import parse_device
from alignment.data.prompts import read_prompts
from alignment.errors import ConfigError
from alignment.reports import terminal
from alignment.reports.console import Console
from alignment.reports.pictures import contact_sheet, encode
from alignment.reports.statistics import Interval
from evals.choosing.choose import CHOSEN, Gain, Pick, choose, gains, write_chosen
from evals.generation.command import Asked, device_of, planned, say_size, wait, words_of
from evals.generation.generate import generate
from evals.generation.judge import judge
from evals.generation.page import finite
from evals.generation.plan import EvalPlan, Share
from evals.generation.progress import Bar
from evals.generation.shelf import write
from evals.generation.table import Table
from evals.medium import Medium, as_media

SUITE = "prompts"
CANDIDATES = "candidates"
ASKED = "prompts.jsonl"
SHEET, JSON = "sheet.png", "generated.json"
SHOWN = 8
"""Pictures on the sheet."""


def main(args: argparse.Namespace) -> int:
    """Make, score and choose; return the exit code."""
    output, share = Path(args.output), Share.launched()
    told = _asked(args, output)
    _check(args)
    plan = planned(told, output / CANDIDATES, parse_device(device_of(args.device, share)))
    chooser = next(iter(plan.rewards)) if args.by else None
    [subject] = plan.subjects
    if subject.kind == "pictures":
        raise ConfigError(f"{subject.place} is a folder of pictures; visalign eval compares such, nothing makes more")
    bar = Bar(quiet=share.rank > 0)
    say_size(plan, bar)
    if args.best_of > 1:
        bar.say(f"best of {args.best_of} by {chooser}: {args.best_of} times what plain pictures cost, and the scoring")
    if args.dry_run:
        return 0
    plan.settle(told, share)
    seconds = {}
    try:
        for stage in (generate, judge):
            since = time.monotonic()
            stage(plan, share, bar)
            seconds[stage.__name__] = time.monotonic() - since
        if share.rank > 0:
            return 0
        wait(plan, share, bar)
    finally:
        bar.end()
    _finish(args, plan, chooser, seconds)
    return 0


def _asked(args: argparse.Namespace, output: Path) -> Asked:
    """Return the words of a comparison of one subject on the prompts."""
    if bool(args.prompt) == (args.prompts is not None):
        raise ConfigError("what is to be seen? give --prompt TEXT (repeated for several), or --prompts FILE")
    file = args.prompts or str(_kept(args.prompt, output))
    read_prompts(file)
    rewards = [*([args.by] if args.by else []), *(args.reward or [])]
    return words_of(args, [args.subject], [[SUITE, f"file={file}"]], rewards, args.pictures * args.best_of)


def _kept(texts: list[str], output: Path) -> Path:
    """Return the file that keeps the prompts of a command line.

    Raises:
        ConfigError: If the folder holds pictures of others.
    """
    path = output / ASKED
    content = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts).encode(
        errors="replace"
    )
    if not path.is_file():
        write(path, content)
    elif path.read_bytes() != content:
        raise ConfigError(f"--output {output} holds pictures of other prompts ({path}); choose another --output")
    return path


def _check(args: argparse.Namespace) -> None:
    """Refuse tries that nothing chooses from, and a reward that chooses from one.

    Raises:
        ConfigError: If there is something to choose from and nothing that chooses, or the other way round.
    """
    if args.best_of > 1 and not args.by:
        raise ConfigError(
            f"--best-of {args.best_of}: by what is the best chosen? --by REWARD [key=value ...]; see visalign rewards "
            "list"
        )
    if args.best_of == 1 and args.by:
        raise ConfigError(
            f"--by {args.by[0]} chooses among several, and one is made: --best-of N; to score what is made: --reward "
            f"{args.by[0]}"
        )


def _finish(args: argparse.Namespace, plan: EvalPlan, chooser: str | None, seconds: dict[str, float]) -> None:
    """Choose, write what was chosen, and say what it came to."""
    output, table = Path(args.output), Table(plan, plan.subjects[0].name, SUITE)
    rows = [row for unit in plan.units(SUITE) for row in unit.rows]
    scores = dict(table.scores)
    picks = choose(rows, scores[chooser].tolist() if chooser else [math.nan] * len(rows), args.pictures)
    files = [plan.output / name for name in table.files]
    prompts = [str(item.prompt) for item in plan.items[SUITE]]
    written = write_chosen(output, picks, rows, files, prompts, scores)
    whole = {title: scores[title] for title in plan.rewards_of(SUITE)}
    found = gains(picks, whole, chooser, plan.right_or_wrong(SUITE))
    write(output / SHEET, encode(_sheet(picks, files, prompts, found, scores)))
    made = {
        "subject": asdict(plan.subjects[0]),
        "pictures": len(picks),
        "candidates": len(rows),
        "seconds": seconds,
        "rewards": [asdict(gain) for gain in found],
        "unscored": dict(table.reasons),
        "files": [str(path.relative_to(output)) for path in written],
    }
    write(output / JSON, (json.dumps(finite(made), indent=2, ensure_ascii=False) + "\n").encode(errors="replace"))
    _show(args, picks, found, seconds, made)


def _sheet(picks: list[Pick], files: list[Path], prompts: list[str], found: list[Gain], scores: Any) -> Any:
    """Return the first pictures side by side; where some were chosen, each beside the plain one of its place."""
    sides = [(pick, side) for pick in picks[:SHOWN] for side in ("plain", "chosen")]
    if all(pick.tried == 1 for pick in picks):
        sides = [(pick, "chosen") for pick in picks[:SHOWN]]
    indices = [vars(pick)[side] for pick, side in sides]
    shown = [Medium.file(files[index]).levels() for index in indices]
    title = found[0].title if found else None
    notes = [
        "" if title is None else f"{side} {scores[title][index]:.3g}"
        for (_, side), index in zip(sides, indices, strict=True)
    ]
    return contact_sheet(as_media(shown), [prompts[pick.item] for pick, _ in sides], notes)


def _show(
    args: argparse.Namespace, picks: list[Pick], found: list[Gain], seconds: dict[str, float], made: dict[str, Any]
) -> None:
    if args.json:
        terminal.show(json.dumps(finite(made)))
        return
    several = args.best_of > 1
    if found:
        headings = (
            ("reward", "", "plain", f"best of {args.best_of}", "change [95 %]")
            if several
            else ("reward", "mean", "95 %")
        )
        shown = Shown(title=f"{len(picks)} pictures")
        for heading in headings:
            shown.add_column(heading)
        for gain in found:
            said = f"{gain.change.mean:+.4g} [{gain.change.low:+.3g}, {gain.change.high:+.3g}]"
            role = "chose" if gain.chooses else "held out"
            means = (f"{gain.plain.mean:.4g}", f"{gain.chosen.mean:.4g}")
            row = (gain.title, role, *means, said) if several else (gain.title, means[1], _bounds(gain.chosen))
            shown.add_row(*row)
        Console().print(shown)
    if made["unscored"]:
        first, reason = next(iter(made["unscored"].items()))
        terminal.show(f"note: {len(made['unscored'])} scores are missing; {first}: {reason}")
    scoring = f", {seconds['judge']:.1f} s of scoring" if found else ""
    terminal.show(f"cost: {made['candidates']} pictures made for {len(picks)}: {seconds['generate']:.1f} s{scoring}")
    terminal.show(f"pictures: {Path(args.output) / CHOSEN}; side by side: {Path(args.output) / SHEET}")


def _bounds(found: Interval) -> str:
    return f"[{found.low:.3g}, {found.high:.3g}]"
