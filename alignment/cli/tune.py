"""`visalign tune`: its words, and what they ask for."""

from __future__ import annotations

import argparse

from alignment.importing import importing
from alignment.reports.terminal import show


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Tell the parser the words of the command, and return it."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file")
    parser.add_argument(
        "--search",
        metavar="FIELD=LOW:HIGH",
        action="append",
        default=[],
        help="a number of the config, such as optimizer.learning_rate=1e-4:1e-2; may be given again",
    )
    parser.add_argument("--prompts", required=True, metavar="FILE", help="prompts to measure on, and never to test on")
    parser.add_argument("--metric", default="reward", help="what is to be large on them (reward)")
    parser.add_argument("--trials", type=int, default=16, help="settings that are tried (16)")
    parser.add_argument("--halvings", type=int, default=2, help="how often the worse half ends early (2)")
    parser.set_defaults(command=_tune)
    return parser


def _tune(args: argparse.Namespace) -> int:
    with importing():
        from alignment.training.tuning.study import Asked, tune

    given = (args.config, tuple(args.overrides), tuple(args.search), args.prompts)
    show(f"{tune(Asked(*given, args.metric, args.trials, args.halvings))} says what was tried")
    return 0
