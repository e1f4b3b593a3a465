"""A run from a config file, what it extends, and the command line; and a run made in code, held to the same rules.

Files are read and laid upon each other before torch is imported, which what a run is made of needs: a file that is not
there, or no YAML, is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.config import overlay
from alignment.config.yaml_nodes import Node
from alignment.errors import ConfigError

if TYPE_CHECKING:
    from alignment.config.run import Run


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a config file, what it extends, and `key.path=value` overrides, into a run.

    Raises:
        ConfigError: Anything is wrong; the message names the file, line and key, or says "command line".
    """
    return _built(overlay.override(overlay.read(Path(path)), overrides))


def checked(path: str, overrides: Sequence[str]) -> Run:
    """Return the run that a config says, if it can work on this machine with the processes that were launched.

    Args:
        path: Config file.
        overrides: `key=value` words laid over it.

    Raises:
        ConfigError: As `load` and `checks.check` do.
        EnvironmentProblem: As `checks.check` does.
    """
    run = load(path, overrides)
    from alignment.config import checks

    checks.check(run, checks.processes())
    return run


def as_written(run: Run) -> Run:
    """Return the run that the YAML of a run made in code builds: what its folder says is then what is trained.

    Raises:
        ConfigError: Something in it is wrong or cannot be written as YAML; the message names the key.
    """
    from alignment.config.build import written

    return _built(_node(written(run), ""))


def _built(node: Node) -> Run:
    from alignment.config import checks, registry
    from alignment.config.build import build, fail, node_at
    from alignment.config.run import Run

    registry.look_here()
    run = build(Run, node)
    for key, message in checks.values(run):
        fail(node_at(node, key), key, message)
    return run


def _node(value: object, key: str) -> Node:
    """Return plain values as nodes that were written nowhere; paths become text.

    Raises:
        ConfigError: If a value is none that YAML has.
    """
    match value:
        case None | bool() | int() | float() | str():
            return Node(value, "")
        case PathLike():
            return Node(fspath(value), "")
        case list() | tuple():
            return Node([_node(item, f"{key}.{index}") for index, item in enumerate(value)], "")
        case Mapping():
            return Node({str(name): _node(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}, "")
        case _:
            raise ConfigError(
                f"{key}: got a {type(value).__name__}, which cannot be written into the run's config; expected text, a "
                "number, true or false, null, a list or a mapping of these"
            )
