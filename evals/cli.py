"""The actions of `visalign rewards`; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.importing import importing
from alignment.reports.terminal import show

Actions = Any
"""What `add_subparsers` returns; argparse keeps its class private."""


def add(actions: Actions) -> None:
    """Add `list`, `score` and `bench` to the actions of `visalign rewards`."""
    for one in (_add_list, _add_score, _add_bench):
        one(actions)


def add_eval(commands: Actions) -> None:
    """Add `visalign eval`, which compares generators, to the commands."""
    says = "compare generators: the same prompts and noise, scored, with intervals, and a page"
    parser = _action(commands, "eval", says)
    parser.add_argument(
        "subjects",
        nargs="*",
        metavar="[NAME=]PLACE[+ADAPTER[@WEIGHT]]",
        help="a pipeline, with adapters or without, a checkpoint or run, or a folder of pictures; the first is the "
        "base. Without any, --output goes on with what was begun there",
    )
    for flag, metavar, words in (
        ("--on", "SUITE", "a suite of prompts, followed by its fields: geneval folder=PATH; shapes by default"),
        ("--reward", "REWARD", "what scores, followed by its fields; by default what the suite's publishers use"),
        ("--features", "EXTRACTOR", "what describes pictures, followed by its fields: dinov2 weights=PATH"),
    ):
        parser.add_argument(flag, nargs="+", action="append", metavar=metavar, help=f"{words}; may be repeated")
    parser.add_argument("--pictures", type=_positive, metavar="N", help="pictures per prompt; as the suite says")
    _add_making(parser)
    parser.add_argument("--sweep", action="store_true", help="compare the subject's one adapter at strengths 0 to 1.25")
    parser.add_argument("--reference", metavar="FOLDER", help="real pictures that fidelity is measured against")
    parser.add_argument("--references", type=_positive, default=1000, metavar="N", help="how many of them (1000)")
    stages = ("generate", "score", "compare", "report")
    parser.add_argument("--only", nargs="+", choices=stages, metavar="STAGE", help=f"do these of {', '.join(stages)}")
    parser.add_argument("--output", default="runs/eval", metavar="FOLDER", help="of all of it (runs/eval)")
    parser.add_argument("--json", action="store_true", help="print eval.json in place of the table")
    parser.set_defaults(command=_eval)


def _eval(args: argparse.Namespace) -> int:
    with importing():
        from evals.generation import command

    return command.main(args)


def add_generate(commands: Actions) -> None:
    """Add `visalign generate`, which makes pictures, to the commands."""
    says = "make pictures: plain, or the best of several by a reward"
    parser = _action(commands, "generate", says)
    parser.add_argument(
        "subject",
        metavar="PLACE[+ADAPTER[@WEIGHT]]",
        help="a pipeline, with adapters or without, or a checkpoint or run",
    )
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="what is to be seen; may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="a .txt, .jsonl or .parquet file of prompts, in its place")
    parser.add_argument("--pictures", type=_positive, default=1, metavar="K", help="pictures per prompt (1)")
    parser.add_argument("--best-of", type=_positive, default=1, metavar="N", help="make N for each and keep the best")
    parser.add_argument("--by", nargs="+", metavar="REWARD", help="what chooses, followed by its fields")
    parser.add_argument(
        "--reward", nargs="+", action="append", metavar="REWARD", help="what scores, too, and does not choose; repeated"
    )
    parser.add_argument("--output", default="runs/generated", metavar="FOLDER", help="of all of it (runs/generated)")
    parser.add_argument("--json", action="store_true", help="print generated.json in place of the table")
    _add_making(parser)
    parser.set_defaults(command=_generate)


def _generate(args: argparse.Namespace) -> int:
    with importing():
        from evals.choosing import command

    return command.main(args)


def add_vote(commands: Actions) -> None:
    """Add `visalign vote`, which asks people, to the commands."""
    says = "ask people which of two pictures is better, on a local web page; their votes are pairs to learn from"
    parser = _action(commands, "vote", says)
    parser.add_argument(
        "subjects", nargs="*", metavar="[NAME=]PLACE[+ADAPTER[@WEIGHT]]", help="two or more, as for visalign eval"
    )
    parser.add_argument(
        "--waiting", metavar="FOLDER", help="in their place: ask what a run asks there that waits for votes"
    )
    parser.add_argument(
        "--on", nargs="+", action="append", metavar="SUITE", help="prompts, followed by fields: prompts file=mine.txt"
    )
    parser.add_argument("--pictures", type=_positive, metavar="N", help="pictures per prompt; as the suite says")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=0, help="port to listen on; a free one by default")
    parser.add_argument("--token-file", metavar="FILE", help="what voters need; made up by default")
    parser.add_argument("--output", default="runs/vote", metavar="FOLDER", help="of all of it (runs/vote)")
    _add_making(parser)
    parser.set_defaults(command=_vote)


def _vote(args: argparse.Namespace) -> int:
    with importing():
        from evals.voting import command

    return command.main(args)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port, from 0 to 65535")
    return int(text)


def _add_making(parser: argparse.ArgumentParser) -> None:
    """Add how pictures are made."""
    parser.add_argument("--call", nargs="+", default=[], metavar="key=value", help="arguments of the pipeline's call")
    parser.add_argument("--limit", type=_positive, metavar="N", help="use the first N prompts only")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--batch-size", type=_positive, default=64, help="pictures in one pipeline call (64)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights; as trained")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and stop")


def _action(actions: Actions, name: str, says: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=says, description=says, allow_abbrev=False)


def _add_list(actions: Actions) -> None:
    parser = _action(actions, "list", "list the reward models, and the benchmarks that measure them")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.set_defaults(command=_list)


def _list(args: argparse.Namespace) -> int:
    from rich.table import Table

    from alignment.reports.console import Console
    from evals.listing import Listed, benchmarks, rewards

    found: dict[str, list[Listed]] = {"rewards": rewards(), "benchmarks": benchmarks()}
    if args.json:
        show(json.dumps({kind: [vars(entry) for entry in entries] for kind, entries in found.items()}, indent=2))
        return 0
    for kind, entries in found.items():
        table = Table(title=kind)
        for heading in ("name", "what it is", *(("gradient", "scope") if kind == "rewards" else ())):
            table.add_column(heading)
        for entry in entries:
            more = (entry.differentiable, entry.scope) if kind == "rewards" else ()
            table.add_row(entry.name, entry.says, *more)
        Console().print(table)
    return 0


def _add_score(actions: Actions) -> None:
    parser = _action(actions, "score", "score the media of a file or folder with one reward model")
    parser.add_argument("name", metavar="REWARD", help="a type of reward, 'package.module:Class', or a YAML file")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="fields of the reward")
    parser.add_argument("--input", required=True, metavar="PATH", help='a .jsonl of {"prompt", "media"}, or a folder')
    parser.add_argument("--output", required=True, metavar="PATH", help="a .jsonl, .csv or .parquet file")
    parser.add_argument("--prompt", help="the prompt of every medium that brings none")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what a medium does that cannot be read or judged",
    )
    _add_running(parser)
    parser.set_defaults(command=_score)


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=_positive, default=16, help="most media in one call (16)")
    parser.add_argument("--frames", type=_positive, default=16, help="most frames of a clip (16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _score(args: argparse.Namespace) -> int:
    from alignment.config import build
    from evals import score

    scorer = _scorer(args.name, args.overrides, args)
    bare = None if scorer.model.reads_prompts() else ""
    lines = score.read(Path(args.input), bare if args.prompt is None else args.prompt)
    scorer.model.check(tuple(dict.fromkeys(line.request.prompt for line in lines)))
    missing = score.write(scorer, lines, Path(args.output), build.resolved(scorer.model), args.on_error)
    show(f"{len(lines) - missing} of {len(lines)} media scored by {scorer.model}: {args.output}")
    return 0


def _scorer(name: str, overrides: Sequence[str], args: argparse.Namespace) -> Any:
    from alignment.config import build
    from alignment.config.device import parse_device
    from evals.scoring import BatchScorer
    from reward_models.base import RewardModel

    device = parse_device(args.device)
    model = build.of_kind(RewardModel, name, overrides)
    return BatchScorer(model, device, args.batch_size, args.frames)


def _add_bench(actions: Actions) -> None:
    parser = _action(
        actions, "bench", "measure reward models against human preferences, and against what they should not mind"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="REWARD [key=value ...]",
        help="reward models, each followed by its fields: shapes strict=1 clip weights=PATH",
    )
    parser.add_argument(
        "--on", default="shapes", metavar="BENCHMARK", help="a benchmark (visalign rewards list); shapes"
    )
    parser.add_argument(
        "--with", dest="given", action="append", default=[], metavar="key=value", help="a field of the benchmark"
    )
    parser.add_argument("--limit", type=_positive, help="use the first N comparisons only")
    parser.add_argument("--probed", type=int, default=64, help="comparisons whose media are probed (64); 0 for none")
    parser.add_argument("--output", default="runs/bench", metavar="FOLDER", help="for bench.json and report.html")
    parser.add_argument("--json", action="store_true", help="print bench.json in place of the table")
    _add_running(parser)
    parser.set_defaults(command=_bench)


def _bench(args: argparse.Namespace) -> int:
    from evals import run_bench
    from evals.words import named

    made = run_bench.run(
        {title: (lambda w=words: _scorer(w[0], w[1], args)) for title, words in named(args.overrides).items()},
        run_bench.Wanted(args.on, tuple(args.given), args.limit, args.probed, Path(args.output)),
    )
    run_bench.show(made, Path(args.output), as_json=args.json)
    return 0
