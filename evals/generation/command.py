"""`visalign eval`: what is asked for on the command line, and the stages one after the other."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from alignment.config import build, overlay, registry, yaml_nodes
from alignment.config.device import parse_device
from alignment.config.yaml_nodes import COMMAND_LINE, Node
from alignment.errors import ConfigError
from alignment.features.base import Extractor
from alignment.reports import terminal
from alignment.reports.console import Console
from evals.generation import page, subjects
from evals.generation.compare import OnSuite, compare
from evals.generation.generate import generate, missing, pictures
from evals.generation.generate import named as with_pictures
from evals.generation.judge import check_weights, judge, unjudged
from evals.generation.plan import EvalPlan, Making, Share, read_protocol
from evals.generation.progress import Bar
from evals.suites.base import Suite
from evals.words import named
from reward_models.base import RewardModel

STAGES = ("generate", "score", "compare", "report")
FEATURES = (("pixels",), ("looks",))
"""What describes pictures where the command line names nothing: what needs no weights."""
_PAUSE = 0.2
"""Seconds between two looks at what other processes have finished."""

Asked = dict[str, Any]
"""The words of a command line, as the protocol of a folder keeps them."""


def asked(args: argparse.Namespace) -> Asked:
    """Return what is asked for: the command line's, or that of the folder where it names no subject.

    Raises:
        ConfigError: If neither says what is compared.
    """
    if args.subjects:
        told = words_of(args, args.subjects, args.on or [["shapes"]], args.reward or [], args.pictures)
        features = args.features or [list(words) for words in FEATURES]
        return told | {
            "sweep": args.sweep, "features": features, "reference": args.reference, "references": args.references
        }  # fmt: skip
    before = read_protocol(Path(args.output))
    if before is None:
        raise ConfigError(
            f"what is compared? visalign eval SUBJECT [SUBJECT ...]; without, --output {args.output} would have to "
            "hold a comparison that was begun before"
        )
    kept: Asked = before["asked"]
    given = {"rewards": args.reward, "features": args.features}
    if args.pictures is not None:
        kept["making"]["pictures"] = args.pictures
    return kept | {key: value for key, value in given.items() if value}


def words_of(
    args: argparse.Namespace,
    subjects: Sequence[str],
    suites: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[str]],
    pictures: int | None,
) -> Asked:
    """Return the words of a comparison without features or references, made as a command line says.

    Args:
        args: The command line, for how pictures are made.
        subjects: What is compared.
        suites: On what, each with its fields.
        rewards: What scores, each with its fields.
        pictures: Pictures per prompt; None as a suite says.
    """
    making = {key: vars(args)[key] for key in ("seed", "limit", "batch_size", "dtype")}
    return {
        "subjects": list(subjects),
        "sweep": False,
        "suites": suites,
        "rewards": rewards,
        "features": [],
        "call": list(args.call),
        "making": {**making, "pictures": pictures},
        "reference": None,
        "references": 2,
    }


def planned(told: Asked, output: Path, device: torch.device) -> EvalPlan:
    """Return the comparison that words ask for; nothing is loaded.

    Raises:
        ConfigError: Naming the word that cannot be used.
        DataError: If a suite cannot be read.
    """
    registry.look_here()
    compared = subjects.parse(told["subjects"])
    if told["sweep"]:
        if len(compared) != 1:
            raise ConfigError(f"--sweep takes one subject, the one with the adapter; got {len(compared)}")
        compared = subjects.sweep(compared[0])
    call = yaml_nodes.plain(overlay.override(Node({}, COMMAND_LINE), told["call"]))
    assert isinstance(call, dict)
    given = told["making"]
    for name in ("pictures", "limit", "batch_size"):
        value = given[name]
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be >= 1, got {value}")
    if told["references"] < 2:
        raise ConfigError(f"--references must be >= 2, got {told['references']}")
    like = subjects.trained(compared, call=not call, dtype=given["dtype"] is None)
    making = Making(
        given["seed"],
        given["pictures"],
        given["limit"],
        given["batch_size"],
        {**like.call, **call},
        given["dtype"] or like.dtype,
        None if given["dtype"] else like.autocast,
    )
    return EvalPlan(
        compared,
        titled(Suite, told["suites"]),
        titled(RewardModel, told["rewards"]),
        titled(Extractor, told["features"]),
        making,
        output,
        told["references"],
        None if told["reference"] is None else Path(told["reference"]),
        device,
    )


def check_scored(plan: EvalPlan) -> None:
    """Refuse a comparison of which nothing is asked.

    Raises:
        ConfigError: If nothing scores the pictures of a suite.
    """
    for name, suite in plan.suites.items():
        if not plan.rewards_of(name):
            raise ConfigError(
                f"{name} does not say what scores its pictures"
                + (f" (its publishers use {suite.scored})" if suite.scored else "")
                + "; name it: --reward REWARD [key=value ...]; see visalign rewards list"
            )


def titled(kind: Any, words: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return what words such as ["clip", "weights=PATH"] build, by its name; by its fields, too, where two share it."""
    found = named([word for one in words for word in one]) if words else {}
    short = [_short(name) for name, _ in found.values()]
    return {
        brief if short.count(brief) == 1 else title: build.of_kind(kind, name, fields)
        for brief, (title, (name, fields)) in zip(short, found.items(), strict=True)
    }


def _short(name: str) -> str:
    """Return a type's name without its module, and a file's without its folder."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name.rpartition(":")[2]


def main(args: argparse.Namespace) -> int:
    """Do the stages that are asked for and return the exit code."""
    told, share, output = asked(args), Share.launched(), Path(args.output)
    plan = planned(told, output, parse_device(device_of(args.device, share)))
    check_scored(plan)
    stages = args.only or STAGES
    if "score" in stages:
        check_weights(plan, share)
    bar = Bar(quiet=share.rank > 0)
    say_size(plan, bar)
    if args.dry_run:
        return 0
    plan.settle(told, share)
    found: list[OnSuite] = []
    try:
        if "generate" in stages:
            generate(plan, share, bar)
        if "score" in stages:
            judge(plan, share, bar)
        if share.rank > 0:
            return 0
        if {"compare", "report"} & set(stages):
            wait(plan, share, bar)
            found = compare(plan, bar)
            page.write_json(plan, found)
        if "report" in stages:
            page.write_page(plan, found)
    finally:
        bar.end()
    if found:
        _show(found, output, as_json=args.json)
    return 0


def device_of(name: str, share: Share) -> str:
    """Return the device of this process: each of several on a machine takes a GPU of its own."""
    several = share.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available()
    return f"cuda:{share.rank % torch.cuda.device_count()}" if several else name


def say_size(plan: EvalPlan, bar: Bar) -> None:
    """Say what it is going to cost, as far as that is known before anything is loaded."""
    whole, names = Share(), [subject.name for subject in plan.subjects]
    there = sum(len(unit.rows) for name in names for _, unit in missing(plan, whole, name))
    total = pictures(plan, names)
    each = ", ".join(f"{len(items)} prompts of {suite}" for suite, items in plan.items.items())
    steps = plan.making.call.get("num_inference_steps")
    cost = f"; {there * steps:,} denoising steps" if isinstance(steps, int) and there else ""
    bar.say(f"{', '.join(names)} on {each}: {total:,} pictures, of which {there:,} are to be made{cost}")


def wait(plan: EvalPlan, share: Share, bar: Bar) -> None:
    """Wait until the other processes have finished their parts, where there are others."""
    if share.size == 1:
        return
    bar.say("waiting for the other processes")
    for other in range(share.size):
        theirs = Share(other, share.size)
        while unfinished(plan, theirs):
            time.sleep(_PAUSE)


def unfinished(plan: EvalPlan, share: Share) -> bool:
    """Whether something of a process's part is not made, scored or described yet."""
    return any(missing(plan, share, name) for name in with_pictures(plan)) or unjudged(plan, share)


def _show(found: Sequence[OnSuite], output: Path, *, as_json: bool) -> None:
    if as_json:
        terminal.show(json.dumps(json.loads((output / page.JSON).read_bytes())))
        return
    console = Console()
    for title, rows in page.table_of(found):
        alone = not found[0].beside
        table = Table(title=title)
        for heading in ("subject", "measure", "mean", "95 %", "", "") if alone else (
            "subject", "measure", "base", "subject's", "change [95 %]", "verdict"
        ):  # fmt: skip
            table.add_column(heading)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for suite in found:
        for note in suite.notes:
            terminal.show(f"note: {note}")
        for beside in suite.beside.values():
            terminal.show(beside.says)
    if (output / page.PAGE).is_file():
        terminal.show(f"report: {output / page.PAGE}")
