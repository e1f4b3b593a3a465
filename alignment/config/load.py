"""A run from a config file, what it extends, and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignment.config import checks, overlay, registry
from alignment.config.build import build, fail, node_at
from alignment.config.run import Run


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a config file, what it extends, and `key.path=value` overrides, into a run.

    Raises:
        ConfigError: Anything is wrong; the message names the file, line and key, or says "command line".
    """
    registry.look_here()
    node = overlay.override(overlay.read(Path(path)), overrides)
    run = build(Run, node)
    for key, message in checks.values(run):
        fail(node_at(node, key), key, message)
    return run
