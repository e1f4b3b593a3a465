"""What a config can hold: every kind that a run is made of, its types, and their fields with one line each."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any, get_args

from alignment.config import registry
from alignment.config.build import fields_of, words
from alignment.config.registry import Kind
from alignment.errors import ConfigError


def kinds(root: type) -> dict[str, Kind]:
    """Return each kind reachable from the fields of `root` and of the types found on the way, by its folder's name."""
    found: dict[str, Kind] = {}
    seen: set[type] = set()
    pending: list[object] = [root]
    while pending:
        annotation = pending.pop()
        pending.extend(get_args(annotation))
        if not isinstance(annotation, type) or annotation in seen:
            continue
        seen.add(annotation)
        if registry.is_kind(annotation):
            found[annotation.home.rpartition(".")[2]] = annotation
            pending.extend(registry.find(annotation, name) for name in registry.known(annotation))
        elif dataclasses.is_dataclass(annotation):
            pending.extend(hint for hint, _ in fields_of(annotation).values())
    return dict(sorted(found.items()))


def listing(root: type, name: str | None) -> str:
    """Describe the kind called `name`; with None, list the kinds; with "run", describe `root` itself.

    Raises:
        ConfigError: There is no such kind.
    """
    found = kinds(root)
    if name is None:
        return "\n".join(f"{key:16}{', '.join(registry.known(kind))}" for key, kind in found.items())
    if name == "run":
        return "\n".join(_fields(root))
    key = _meant(name, found)
    blocks = []
    for short in registry.known(found[key]):
        cls = registry.find(found[key], short)
        blocks.append("\n".join([f"type: {short}", f"    {_summary(cls)}", *(f"    {line}" for line in _fields(cls))]))
    return "\n\n".join(blocks)


def _meant(name: str, found: Mapping[str, Kind]) -> str:
    key = name if name in found else next((key for key in found if _stem(key) == _stem(name)), None)
    if key is None:
        raise ConfigError(f"there is nothing called '{name}' to list. Known: run, {', '.join(found)}")
    return key


def _stem(name: str) -> str:
    """Return the first word of a name, in the singular: rewards and reward_models are one thing to a user."""
    return name.partition("_")[0].removesuffix("s")


def listing_json(root: type, name: str | None) -> str:
    """Return what `listing` says of one kind, or of "run" and every kind, as a JSON object by name.

    Of "run" it is a list of fields. Of a kind it is an object of its types; each has its `doc`, the whole docstring,
    and its `fields`: name, type, default in words (null where there is none), whether it is required, an explanation,
    and the fields inside it.

    Raises:
        ConfigError: There is no such kind.
    """
    found = kinds(root)
    wanted = ["run", *found] if name is None else [name if name == "run" else _meant(name, found)]
    described = {key: _described(root) if key == "run" else _types(found[key]) for key in wanted}
    return json.dumps(described, indent=2)


def _types(kind: Kind) -> dict[str, Any]:
    classes = {short: registry.find(kind, short) for short in registry.known(kind)}
    return {short: {"doc": inspect.getdoc(cls) or "", "fields": _described(cls)} for short, cls in classes.items()}


def _described(cls: type) -> list[dict[str, Any]]:
    says = explained(cls)
    return [
        {
            "name": name,
            "type": words(hint),
            "default": None if field.default is dataclasses.MISSING else _default(field).removeprefix(", default "),
            "required": field.default is field.default_factory is dataclasses.MISSING,
            "says": says.get(name, ""),
            "fields": [inner for part in _plain_parts(hint) for inner in _described(part)],
        }
        for name, (hint, field) in fields_of(cls).items()
    ]


def _plain_parts(hint: Any) -> list[type]:
    """Return the dataclasses that a field of this type holds and that no `type:` chooses."""
    parts = [part for part in (hint, *get_args(hint)) if isinstance(part, type)]
    return [part for part in parts if dataclasses.is_dataclass(part) and not registry.is_kind(part)]


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _fields(cls: type) -> list[str]:
    """Return one line a field: name, type, default, explanation; fields of plain dataclasses are indented below."""
    says = explained(cls)
    lines = []
    for name, (hint, field) in fields_of(cls).items():
        line = f"{name}: {words(hint)}{_default(field)}"
        lines.append(f"{line}. {says[name]}" if name in says else line)
        for part in _plain_parts(hint):
            lines.extend(f"    {deeper}" for deeper in _fields(part))
    return lines


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return ", required" if field.default_factory is dataclasses.MISSING else ""
    if dataclasses.is_dataclass(field.default):
        return ""
    return f", default {_shown(field.default)}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def explained(cls: type) -> dict[str, str]:
    """Read the docstrings' `Attributes:` blocks, those of base classes first: the first sentence of each entry."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        block = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        entries = re.split(r"^    (?=\w+: )", block, flags=re.MULTILINE)[1:]
        for name, text in (entry.split(": ", 1) for entry in entries):
            found[name] = re.split(r"(?<=\.)\s", re.sub(r"\s+", " ", text).strip())[0]
    return found
