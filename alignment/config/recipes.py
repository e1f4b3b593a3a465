"""The configs that ship, and a file of one's own made from one of them: whole, and with every field explained."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from alignment.config import overlay, registry, yaml_nodes
from alignment.config.build import build, fields_of, members, written
from alignment.config.listing import explained
from alignment.config.run import Run
from alignment.config.shipped import recipes
from alignment.errors import ConfigError, EnvironmentProblem

_WIDTH = 118


def recipe(name: str) -> Path:
    """Return the file of a recipe: by its name, with or without folder and ending, or one of your own.

    Raises:
        ConfigError: There is none.
    """
    given, shipped = Path(name), recipes()
    if given.is_file():
        return given
    if given.stem not in shipped:
        raise ConfigError(
            f"there is no recipe {name!r}. {overlay.nearest(given.stem, shipped)}Give a file, or the name of one that "
            "ships; visalign init lists them"
        )
    return shipped[given.stem]


def list_recipes() -> str:
    """Return a line for each recipe that ships: its name, and what it says of itself."""
    return "\n".join(f"{name:32}{_head(file).partition(chr(10))[0].lstrip('# ')}" for name, file in recipes().items())


def init(name: str, to: str | None) -> Path:
    """Write a recipe as one whole file, every default and what each field means written out, and return its path.

    Paths to what ships beside the recipes are written so that they lead there from the current folder.

    Args:
        name: The recipe.
        to: The file to write; None for the recipe's name in the current folder.

    Raises:
        ConfigError: There is no such recipe, it cannot be read, or there is such a file already.
        EnvironmentProblem: The file cannot be written.
    """
    source = recipe(name)
    target = Path(f"{source.stem}.yaml" if to is None else to)
    registry.look_here()
    run = build(Run, overlay.read(source))
    made = f"# Made from the recipe {source.stem}, whole: nothing is taken from elsewhere."
    text = f"{_head(source)}\n{made}\n\n{commented(run)}".lstrip()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{target} is there already; remove it, or choose another file with --to") from None
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {target}: {error.strerror}; choose another file with --to") from error
    return target


def _head(file: Path) -> str:
    """Return the comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:count])


# ---- comments --------------------------------------------------------------------------------------------------------


def commented(run: Run) -> str:
    """Return the YAML of a run with every default written out, and above each field what it means."""
    return "\n".join(_fields(run)) + "\n"


def _fields(part: Any) -> Iterator[str]:
    """Yield the lines of a dataclass's fields."""
    says = explained(type(part))
    for number, (name, (hint, _)) in enumerate(fields_of(type(part)).items()):
        value = getattr(part, name)
        if number and isinstance(part, Run):
            yield ""
        yield from (f"# {line}" for line in textwrap.wrap(says.get(name, ""), _WIDTH - 2, break_long_words=False))
        if _holds_parts(value):
            yield f"{name}:"
            yield from (f"  {line}" for line in _part(hint, value))
        else:
            yield from _entry(name, written(value, hint))


def _entry(name: str, value: object) -> list[str]:
    """Return the lines of a key and its plain value; lists and mappings are written in one line where they fit."""
    return yaml_nodes.dump({name: value}, block=not isinstance(value, list | dict)).splitlines()


def _holds_parts(value: object) -> bool:
    inner = value.values() if isinstance(value, Mapping) else (value,)
    return any(dataclasses.is_dataclass(one) and fields_of(type(one)) for one in inner)


def _part(hint: Any, value: Any) -> Iterator[str]:
    """Yield the lines of a dataclass, or of a mapping of names to such."""
    if isinstance(value, Mapping):
        [args] = [get_args(one) for one in members(hint) if get_origin(one) in (dict, Mapping)]
        for name, inner in value.items():
            yield f"{yaml_nodes.dump({name: None}, block=True).strip().removesuffix(' null')}"
            yield from (f"  {line}" for line in _part(args[1], inner))
        return
    kinds = [cls for one in members(hint) if registry.is_kind(cls := get_origin(one) or one)]
    if kinds:
        yield f"type: {registry.short_name(kinds[0], type(value))}"
    yield from _fields(value)
