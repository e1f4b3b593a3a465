"""`visalign plan`: what a run takes, on the screen or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from alignment.config import checks
from alignment.config.load import load
from alignment.errors import ConfigError
from alignment.preflight.plan import table as plan_table
from alignment.preflight.plan.plan import Setup, plan
from alignment.reports.console import Console
from alignment.reports.terminal import show


def main(path: str, overrides: Sequence[str], setup: Setup, *, as_json: bool = False) -> int:
    """Plan the run of a config file and print what it takes.

    Args:
        path: Config file.
        overrides: `key=value` words laid over it.
        setup: On what it would run.
        as_json: Print one JSON object in place of tables.

    Raises:
        VisalignError: If it cannot be planned.
    """
    run = load(path, overrides)
    for key, message in checks.rewards(run):
        raise ConfigError(f"{key}: {message}")
    made = plan(run, setup)
    if as_json:
        show(json.dumps(made.as_dict(), indent=2))
    else:
        plan_table.show(made, Console(highlight=False))
    return 0
