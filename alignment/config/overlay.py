"""The layers of a config: the files it extends, the file itself, the command line; each laid upon the one before."""

from __future__ import annotations

import difflib
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from alignment.config.shipped import called, from_here, layers, placed, recipes, ships
from alignment.config.synonyms import same_as
from alignment.config.yaml_nodes import COMMAND_LINE, MAX_DEPTH, MAX_TEXT, Node, parse, show
from alignment.errors import ConfigError

MAX_EXTENDS = 8
MUCH_THE_SAME = 0.75
"""Likeness of two file names, of 1, from which one is taken for a slip of the other."""


def read(path: Path, trail: tuple[Path, ...] = ()) -> Node:
    """Read a config file and the files it extends (relative to it; left to right, then the file itself).

    In place of a file, both may name what ships: a recipe, such as `quickstart_nft`, or a layer, `algorithms/nft`.

    Raises:
        ConfigError: A file is missing, unreadable, not a mapping, or extends itself.
    """
    path = _file(Path(), str(path))
    root = parse(_text(path), os.path.normpath(path))
    if not isinstance(root.value, dict):
        raise ConfigError(f"{root.where}: a config is a mapping of keys to values; this file is {show(root)}")
    own = Node({key: node for key, node in root.value.items() if key != "extends"}, root.where)
    merged = Node({}, root.where)
    trail = (*trail, path.resolve())
    for parent in _parents(root):
        try:
            target = _file(path.parent, str(parent.value))
        except ConfigError as error:
            raise ConfigError(f"{parent.where}: extends: {error}") from None
        if target.resolve() in trail:
            raise ConfigError(
                f"{parent.where}: extends: {os.path.normpath(target)} goes round: it is this file, or "
                "one that extends it"
            )
        if len(trail) > MAX_EXTENDS:
            raise ConfigError(
                f"{parent.where}: extends: {os.path.normpath(target)} is too deep: at most {MAX_EXTENDS} files may "
                "extend one another"
            )
        merged = merge(merged, read(target, trail))
    return merge(merged, placed(own) if ships(path) else own)


def _text(path: Path) -> str:
    """Return the text of a config file, no more of it than `parse` takes."""
    file = os.path.normpath(path)
    try:
        with path.open("rb") as opened:
            content = opened.read(4 * MAX_TEXT + 8)
        return content.decode("utf-8", "strict" if len(content) <= 4 * MAX_TEXT else "ignore")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def _file(folder: Path, name: str) -> Path:
    """Return the config that `name` means in a folder: a file there, else a recipe or layer that ships.

    Raises:
        ConfigError: If it is neither.
    """
    path = folder / name
    shipped = {**recipes(), **layers()}
    meant = None if "\0" in name or os.path.isfile(path) else called(folder, name)
    if meant in shipped:
        found = from_here(shipped[meant])
        if meant != name:
            message = f"{os.path.normpath(path)} stands in {found} now, which is read; its name is enough: {meant}"
            warnings.warn(message, stacklevel=2)
        return Path(found)
    if not os.path.lexists(path):
        hint = "" if "\0" in name else _neighbour(path, meant, shipped)
        raise ConfigError(f"{os.path.normpath(path)!r}: there is no such config file. {hint}".rstrip())
    return path


def _neighbour(path: Path, meant: str | None, shipped: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for a config of much the same name, beside a missing one or among those that ship."""
    known = {other.stem: str(other) for other in sorted(path.parent.glob("*.yaml"))}
    if meant is not None:
        known |= {name: name for name in shipped}
    close = difflib.get_close_matches(meant or path.stem, known, n=1, cutoff=MUCH_THE_SAME)
    return f"Did you mean '{known[close[0]]}'? " if close else ""


def _parents(root: Node) -> Sequence[Node]:
    assert isinstance(root.value, dict)
    extends: Node = root.value.get("extends", Node([], root.where))
    parents = extends.value if isinstance(extends.value, list) else [extends]
    for parent in parents:
        if not isinstance(parent.value, str) or "\0" in parent.value:
            raise ConfigError(f"{parent.where}: extends: expected a file name or a list of them, got {show(parent)}")
    return parents


def merge(base: Node, over: Node) -> Node:
    """Lay `over` upon `base`: mappings key by key, anything else in place of it.

    A mapping with another `type:` is another thing: the old one's keys go with it.
    """
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    old, new = base.value, over.value
    if "type" in old and "type" in new and old["type"].value != new["type"].value:
        return over
    laid = {key: merge(old[key], node) if key in old else node for key, node in new.items()}
    return Node({**old, **laid}, over.where)


def override(root: Node, assignments: Sequence[str]) -> Node:
    """Lay `key.path=value` assignments upon `root`, each value read as YAML; list items are named by their index.

    A `type` is set before its siblings whatever the order they were typed in.
    """
    pairs: list[tuple[list[str], Node]] = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")) or path.count(".") > MAX_DEPTH:
            raise ConfigError(f"command line: expected key.path=value, got {assignment!r}")
        try:
            pairs.append((path.split("."), parse(text, None)))
        except ConfigError as error:
            raise ConfigError(f"command line: {path}:{str(error).removeprefix('command line:')}") from None
    pairs.sort(key=lambda pair: len(pair[0]) if pair[0][-1] == "type" else math.inf)
    for path, value in pairs:
        root = _assign(root, path, value, ".".join(path))
    return root


def _assign(node: Node, path: Sequence[str], value: Node, full: str) -> Node:
    head, rest = path[0], path[1:]
    if isinstance(node.value, list):
        if not head.isdecimal() or int(head) >= len(node.value):
            raise ConfigError(f"command line: {full}: {head!r} is not the index of one of {len(node.value)} list items")
        items = list(node.value)
        items[int(head)] = _assign(items[int(head)], rest, value, full) if rest else merge(items[int(head)], value)
        return Node(items, node.where)
    if not isinstance(node.value, dict | None):
        raise ConfigError(f"command line: {full}: there is no {head!r} inside {show(node)} ({node.where})")
    mapping = node.value or {}
    if rest:
        child = mapping.get(head, Node(None, COMMAND_LINE))
        return Node({**mapping, head: _assign(child, rest, value, full)}, node.where)
    return merge(Node(mapping, node.where), Node({head: value}, node.where))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'x'? " for the known name that means the same or else is closest, or nothing.

    A word that is known from other trainers is answered with the name it has here.
    """
    listed, meant = list(known), same_as(name)
    same = [word.rpartition(".")[2] for word in meant if word.rpartition(".")[2] in listed]
    if not same and any("." in word for word in meant):
        return f"Here it is called {meant[0]}. "
    close = same or difflib.get_close_matches(name, listed, n=1)
    return f"Did you mean '{close[0]}'? " if close else ""
