"""`visalign vote`: pictures of two or more subjects are made or taken, and a local page asks which is better."""

from __future__ import annotations

import argparse
import itertools
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from alignment.config.device import parse_device
from alignment.data.batches import source_of
from alignment.errors import ConfigError, DataError
from alignment.listening import bind, is_loopback
from alignment.reports import terminal
from alignment.reports.pictures import encode
from evals.generation.command import planned, say_size, words_of
from evals.generation.generate import generate
from evals.generation.plan import EvalPlan, Share
from evals.generation.progress import Bar
from evals.generation.shelf import write
from evals.generation.table import Table
from evals.medium import Medium
from evals.voting.ballot import Matchup
from evals.voting.server import application
from evals.voting.votes import MEDIA, Votes, as_json
from reward_models.judges.votes import AskedPair, read_asked
from reward_models.loading.extras import extra
from reward_models.serving.connections import Connections, server_of
from reward_models.serving.token import token_of

MADE = "pictures"


def main(args: argparse.Namespace) -> int:
    """Bring the pictures, ask until the process is asked to leave, and say how subjects stand."""
    for package in ("uvicorn", "fastapi"):
        extra("vote", package, "serve")
    if args.waiting is not None:
        if args.subjects:
            raise ConfigError(f"--waiting {args.waiting} asks about what a run has made; leave {args.subjects[0]} out")
        folder = Path(args.waiting)
        return _serve(args, Votes(folder, [matchup(pair) for pair in read_asked(folder)], args.seed, asking(folder)))
    output = Path(args.output)
    told = words_of(args, args.subjects, args.on or [["shapes"]], [], args.pictures)
    plan = planned(told, output / MADE, parse_device(args.device))
    if len(plan.subjects) < 2:
        raise ConfigError(
            f"between what is the choice? visalign vote SUBJECT SUBJECT ...; got {len(args.subjects) or 'none'}"
        )
    bar = Bar(quiet=False)
    say_size(plan, bar)
    if args.dry_run:
        return 0
    plan.settle(told, Share())
    try:
        generate(plan, Share(), bar)
    finally:
        bar.end()
    return _serve(args, Votes(output, pairs_of(plan, output), args.seed))


def _serve(args: argparse.Namespace, votes: Votes) -> int:
    """Ask until the process is asked to leave."""
    token = token_of(args.token_file) or secrets.token_urlsafe(16)
    with bind(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        terminal.show(
            f"{len(votes.pairs)} pairs, {votes.count()} votes so far; Ctrl-C ends the vote: http://{host}:{port}/?token={token}"
        )
        if not is_loopback(args.host):
            terminal.show("whoever has this address may vote; the connection is not encrypted")
        with suppress(KeyboardInterrupt):  # this is how a vote ends
            server_of(application(votes, token), Connections()).run(sockets=[listener])
    _show(votes, votes.folder)
    return 0


def asking(folder: Path) -> Callable[[], list[Matchup]]:
    """Return what tells which pairs a run asks about that waits for votes in a folder."""
    return lambda: [matchup(pair) for pair in read_asked(folder) if pair.until > time.time()]


def matchup(pair: AskedPair) -> Matchup:
    """Return what a run asks about as what people see."""
    return Matchup(pair.pair, pair.item, pair.prompt, ("one", "other"), pair.media, pair.source)


def pairs_of(plan: EvalPlan, output: Path) -> list[Matchup]:
    """Return every two subjects' pictures of one prompt and noise, which are copied under names that say nothing.

    Pictures that are the same to the last bit are no pair.

    Raises:
        DataError: If a picture is damaged, or no two differ.
    """
    found = []
    for suite, items in plan.items.items():
        tables = {subject.name: Table(plan, subject.name, suite) for subject in plan.subjects}
        shown = {name: [_shown(plan.output / file, output) for file in table.files] for name, table in tables.items()}
        sources = [_source(item.prompt, output) for item in items]
        for one, other in itertools.combinations(tables, 2):
            table = tables[one]
            for index, (row, item) in enumerate(zip(table.names, table.prompts, strict=True)):
                media = shown[one][index], shown[other][index]
                if media[0] != media[1]:
                    name = " ".join((suite, row, one, other))
                    found.append(Matchup(name, item, str(items[item].prompt), (one, other), media, sources[item]))
    if not found:
        raise DataError("no two pictures differ: the subjects are the same, and there is nothing to choose")
    return found


def _source(prompt: str, output: Path) -> str:
    """Return the name under which the picture that a prompt brings is shown; empty where it brings none."""
    source = source_of(prompt)
    if source is None:
        return ""
    name = f"{source.digest}.png"  # upright RGB, whatever it was: a browser shows it
    if not (output / MEDIA / name).is_file():
        write(output / MEDIA / name, encode(source.open()))
    return name


def _shown(path: Path, output: Path) -> str:
    """Return the name under which a picture is shown: that of its content."""
    content = Medium.file(path).read()
    medium = Medium(path.name, path, content)  # which is read once
    medium.levels(1)  # what is damaged is refused before anybody is asked
    name = f"{medium.digest}{path.suffix.lower()}"
    if not (output / MEDIA / name).is_file():
        write(output / MEDIA / name, content)
    return name


def _show(votes: Votes, output: Path) -> None:
    for one in votes.standings():
        first, second = one.subjects
        terminal.show(
            f"{first} was preferred to {second} in {100 * one.rate.mean:.0f} % of {one.rate.n} votes "
            f"[{100 * one.rate.low:.0f}, {100 * one.rate.high:.0f}]: {one.said['first']} better, {one.said['second']} "
            f"worse, {one.said['tie']} equal; {one.said['bad']} pairs both bad"
            if one.rate.n
            else f"no votes on {first} and {second}"
        )
    agreed = as_json(votes)["agreement"]
    if agreed is not None:
        terminal.show(f"agreement of raters (Krippendorff's alpha): {agreed:.2f}")
    terminal.show(f"votes: {output / 'votes.jsonl'}; as pairs: {output / 'pairs.jsonl'}, comparisons.jsonl")
