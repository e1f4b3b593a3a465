"""From YAML to dataclasses and back.

`load` lays files and command line upon each other (`overlay`), `build` constructs the dataclasses bottom-up, `resolved`
writes them out again. Classes are plain; their annotations are the schema and every error names file, line and key.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import pydantic
import torch

from alignment.config import overlay, registry, yaml_nodes
from alignment.config.yaml_nodes import COMMAND_LINE, Node
from alignment.errors import ConfigError, FieldError, MissingError
from alignment.fact import Fact
from reward_models.base import RewardError

T = TypeVar("T")
LARGEST = torch.finfo(torch.float32).max
"""Every number of a config meets float32 sooner or later, and one beyond it would become infinite there."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def build(cls: type[T], node: Node) -> T:
    """Construct the dataclass `cls` from a mapping node.

    A field is a leaf (validated strictly: neither `true` nor `"1"` is a number), a dataclass, a kind (chosen by
    `type:`, see `registry`), or `X | None`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]` of these.
    """
    return typing.cast(T, _value(cls, node, ""))


def of_kind(kind: type[T], name: str, overrides: Sequence[str] = ()) -> T:
    """Construct one part of a run by itself: a reward, a dynamics.

    Args:
        kind: The protocol it fulfils.
        name: A name as in `type:`, or a YAML file that holds the whole mapping.
        overrides: `key.path=value` words laid over it.

    Raises:
        ConfigError: Anything is wrong; the message names the file, line and key, or says "command line".
    """
    registry.look_here()
    written = name.endswith((".yaml", ".yml"))
    node = overlay.read(Path(name)) if written else Node({"type": Node(name, COMMAND_LINE)}, COMMAND_LINE)
    return typing.cast(T, _value(kind, overlay.override(node, overrides), ""))


def node_at(node: Node, key: str) -> Node:
    """Return the node at a key path, or the nearest one above it that was written."""
    for name in key.split("."):
        if not isinstance(node.value, dict) or name not in node.value:
            break
        node = node.value[name]
    return node


def resolved(run: object, kind: type | None = None) -> str:
    """Return YAML text that builds an equal run, or part of one of this kind, every default written out."""
    return yaml_nodes.dump(written(run, kind))


def written(part: object, asked: Any = None) -> object:
    """Return the plain values that build `part` where a field asks for `asked`; None asks for its own class."""
    return _written(asked or type(part), part)


@functools.cache
def fields_of(cls: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Return each constructor field of a dataclass with its evaluated annotation."""
    hints = typing.get_type_hints(cls)
    return {field.name: (hints[field.name], field) for field in dataclasses.fields(cls) if field.init}


def members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, without None; of anything else, itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for member in get_args(annotation) if member is not type(None))
    return (annotation,)


def words(annotation: Any) -> str:
    """Return a type in words for people: "a whole number or null", "one of 'error', 'drop', 'keep'"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        # A callable has no form in YAML; where one may stand, so may its name.
        return " or ".join(words(arg) for arg in args if get_origin(arg) is not Callable)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        of = f"of {words(args[0])}" if args[-1] is Ellipsis else f"({', '.join(map(words, args))})"
        return f"a list {of}"
    if origin in (dict, Mapping):
        return f"a mapping to {words(args[1])}"
    if annotation in (object, Any):
        return "anything"
    cls: Any = origin or annotation
    if registry.is_kind(cls):
        return f"{registry.title(cls)} (a mapping with 'type')"
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return f"{cls.__name__} (a mapping)"
    return WORDS.get(cls, str(annotation))


def fail(node: Node, key: str, message: object) -> NoReturn:
    """Refuse what stands at a node.

    Raises:
        ConfigError: Naming file, line and key.
    """
    raise ConfigError(": ".join(part for part in (node.where, key, str(message)) if part))


def _value(expected: Any, node: Node, key: str) -> object:
    """Construct what the annotation `expected` asks for."""
    if node.value is None and type(None) in get_args(expected):
        return None
    alternatives = members(expected)
    compound = [one for one in alternatives if _is_compound(one)]
    if not compound:
        return _leaf(expected, node, key)
    if len(compound) > 1:
        raise TypeError(f"{key}: {expected} has more than one alternative that a mapping or a list could mean")
    if len(alternatives) > 1 and not isinstance(node.value, dict | list):
        return _leaf(Union[tuple(one for one in alternatives if one is not compound[0])], node, key)  # noqa: UP007
    return _compound(compound[0], node, key, expected)


def _is_compound(annotation: Any) -> bool:
    cls = get_origin(annotation) or annotation
    return cls in (tuple, dict, Mapping) or registry.is_kind(cls) or dataclasses.is_dataclass(cls)


def _compound(expected: Any, node: Node, key: str, asked: Any) -> object:
    cls, args = get_origin(expected) or expected, get_args(expected)
    written: Any = node.value
    if not isinstance(written, list if cls is tuple else dict):
        fail(node, key, f"got {yaml_nodes.show(node)}, expected {words(asked)}")
    if isinstance(written, list):
        return _tuple(args, node, key)
    if cls in (dict, Mapping):
        return {name: _value(args[1], child, _join(key, name)) for name, child in written.items()}
    given = dict(written)
    if registry.is_kind(cls):
        cls = _chosen(cls, given.pop("type", None), node, key)
    return _construct(cls, given, node, key)


def _tuple(args: tuple[Any, ...], node: Node, key: str) -> tuple[object, ...]:
    items: list[Node] = node.value  # type: ignore[assignment]  # checked by the caller
    if args[-1] is Ellipsis:
        args = (args[0],) * len(items)
    if len(args) != len(items):
        fail(node, key, f"got {yaml_nodes.show(node)}, expected a list of {len(args)}")
    return tuple(_value(arg, item, _join(key, str(i))) for i, (arg, item) in enumerate(zip(args, items, strict=True)))


def _chosen(kind: type, node: Node | None, parent: Node, key: str) -> type:
    if node is None:
        known = ", ".join(registry.known(kind))
        fail(parent, key, f"'type' is missing. Known: {known}; or give 'package.module:Class'")
    if not isinstance(node.value, str):
        fail(node, _join(key, "type"), f"got {yaml_nodes.show(node)}, expected a name")
    try:
        return registry.find(kind, node.value)
    except ConfigError as error:
        raise ConfigError(f"{node.where}: {_join(key, 'type')}: {error}") from error


def _construct(cls: type, given: dict[str, Node], node: Node, key: str) -> object:
    fields = fields_of(cls)
    listed = f"Fields: {', '.join(fields) or 'none'}."
    for name, child in given.items():
        if name not in fields:
            known = inspect.getattr_static(cls, name, None)
            always = f"; its {name} is fixed: {known.__doc__}" if isinstance(known, Fact) else "."
            near = "" if isinstance(known, Fact) else overlay.nearest(name, fields)
            fail(child, _join(key, name), f"{cls.__name__} has no such field{always} {near}{listed}")
    missing = [
        f"'{name}' ({words(annotation)})"
        for name, (annotation, field) in fields.items()
        if name not in given and field.default is field.default_factory is dataclasses.MISSING
    ]
    lacking, values = [], {}
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        message = f"{cls.__name__} needs {', '.join(missing)}, which {verb} missing. {listed}"
        lacking.append(": ".join(part for part in (node.where, key, message) if part))
    for name, child in given.items():
        try:
            values[name] = _value(fields[name][0], child, _join(key, name))
        except MissingError as error:  # a file that lacks several things is told so once
            lacking.append(str(error))
    if lacking:
        raise MissingError("\n".join(lacking))
    try:
        return cls(**values)
    except FieldError as error:
        _refuse(node_at(node, error.field), _join(key, error.field), error.reason)
    except (ValueError, RewardError) as error:
        _refuse(node, key, error)


def _refuse(node: Node, key: str, reason: object) -> NoReturn:
    """Refuse what was put together from a file and the command line, and name what was typed."""
    typed = [path for path in _typed(node, key) if path != key]
    also = f", with {', '.join(typed)} from the command line" if typed else ""
    fail(Node(None, f"{node.where}{also}"), key, reason)


def _typed(node: Node, key: str) -> list[str]:
    """Return the key paths of what was typed on the command line, the topmost of each."""
    if node.where == COMMAND_LINE:
        return [key]
    below = node.value.items() if isinstance(node.value, dict) else ()
    return [path for name, child in below for path in _typed(child, _join(key, name))]


@functools.cache
def _adapter(expected: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(expected)


def _leaf(expected: Any, node: Node, key: str) -> object:
    try:
        value = _adapter(expected).validate_python(yaml_nodes.plain(node), strict=True)
    except pydantic.errors.PydanticSchemaGenerationError:
        fail(node, key, f"the type {expected} cannot be written in a config")
    except pydantic.ValidationError:
        choices = [one for part in members(expected) if get_origin(part) is Literal for one in get_args(part)]
        hint = overlay.nearest(node.value, map(str, choices)) if isinstance(node.value, str) else ""
        if yaml_nodes.show(node) in choices:
            hint = f"Put it in quotes: '{yaml_nodes.show(node)}'"
        fail(node, key, f"got {yaml_nodes.show(node)}, expected {words(expected)}. {hint}".rstrip(". "))
    for number in _floats(value):
        if not abs(number) <= LARGEST:
            fail(node, key, f"got {number}, expected a finite number, of at most {LARGEST:.2g} either way")
    return value


def _floats(value: object) -> Iterator[float]:
    """Yield the numbers of a value that are floating-point."""
    if isinstance(value, float):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in inner:
        yield from _floats(item)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _written(expected: Any, value: object) -> object:
    """Return the plain values that build `value` where `expected` is asked for."""
    if dataclasses.is_dataclass(value):
        kinds = [cls for one in members(expected) if registry.is_kind(cls := get_origin(one) or one)]
        body = {name: _written(hint, getattr(value, name)) for name, (hint, _) in fields_of(type(value)).items()}
        return {"type": registry.short_name(kinds[0], type(value)), **body} if kinds else body
    args: tuple[Any, ...] = next(
        (get_args(one) for one in members(expected) if get_origin(one) in (tuple, dict, Mapping)), ()
    )
    if isinstance(value, tuple) and args:
        hints = (args[0],) * len(value) if args[-1] is Ellipsis else args
        if len(hints) != len(value):
            return list(value)  # made in code; who reads it says how many there should be
        return [_written(hint, item) for hint, item in zip(hints, value, strict=True)]
    if isinstance(value, dict) and args:
        return {name: _written(args[1], item) for name, item in value.items()}
    return value
