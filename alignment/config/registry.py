"""The folder is the registry: which class a `type:` names.

A *kind* is a protocol with a `home`. `type: dance_sde` is the class in `<home>/dance_sde.py`, or in a folder below it,
whose name is the file's without underscores, in any case (`DanceSDE`): a dataclass that inherits, as what files share
does not. `type: my_package.my_module:MyClass` is any dataclass anywhere.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from alignment.config.overlay import nearest
from alignment.errors import ConfigError
from reward_models.errors import RewardError, users_code

Kind = Any
"""A protocol class with a `home`, which the type system has no name for."""


def look_here() -> None:
    """Make modules of the current folder importable, as `python -m` does and a console script does not."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def is_kind(annotation: object) -> bool:
    """Return whether fields of this type are chosen by `type:`."""
    return isinstance(annotation, type) and Protocol in annotation.__bases__ and "home" in vars(annotation)


def title(kind: Kind) -> str:
    """Return the kind in words: "objective", "reward model"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def known(kind: Kind) -> dict[str, str]:
    """Return the class name of every short name in the kind's home, read from the files without importing them."""
    return {name: cls for name, (_, cls) in _members(kind).items()}


def _members(kind: Kind) -> dict[str, tuple[str, str]]:
    """Return the module and the class name of every short name.

    Folders below the home belong to it, but for those that are the home of another kind.

    Raises:
        ConfigError: The home is not a package, or two files of it have one name.
    """
    spec = importlib.util.find_spec(kind.home)
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError(f"{title(kind)}: its home {kind.home} is not a package")
    found: dict[str, tuple[str, str]] = {}
    for module, file in _modules(kind.home, [Path(folder) for folder in spec.submodule_search_locations]):
        name, cls = file.stem, _class_in(file)
        if cls is None:
            continue
        if name in found:
            raise ConfigError(f"two files hold the {title(kind)} '{name}', {found[name][0]} and {module}: rename one")
        found[name] = (module, cls)
    return dict(sorted(found.items()))


def _modules(package: str, folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every public module in a package and the packages below it."""
    others = {home for folder in folders for home in _homes(folder / "base.py")} - {package}
    for module in pkgutil.iter_modules([str(folder) for folder in folders]):
        dotted = f"{package}.{module.name}"
        if module.name.startswith("_") or dotted in others:
            continue
        if module.ispkg:
            below = [folder / module.name for folder in folders if (folder / module.name).is_dir()]
            if not any(dotted in _homes(folder / "base.py") for folder in below):
                yield from _modules(dotted, below)
        else:
            files = (folder / f"{module.name}.py" for folder in folders)
            yield from ((dotted, file) for file in files if file.is_file())


@functools.cache
def _homes(file: Path) -> frozenset[str]:
    """Return the homes of the kinds that a file declares."""
    if not file.is_file():
        return frozenset()
    kinds = (node for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef))
    fields = (node for kind in kinds for node in kind.body if isinstance(node, ast.AnnAssign))
    return frozenset(
        field.value.value
        for field in fields
        if ast.unparse(field.target) == "home" and isinstance(field.value, ast.Constant)
        if isinstance(field.value.value, str)
    )


@functools.cache
def _class_in(file: Path) -> str | None:
    """Return the class that has the file's name, if it is a dataclass that inherits."""
    classes = [node for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef) and node.bases]
    named = [node for node in classes if node.name.lower() == file.stem.replace("_", "").lower()]
    return next((node.name for node in named if any(map(_is_dataclass, node.decorator_list))), None)


def _is_dataclass(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "dataclass"


def find(kind: Kind, name: str) -> type:
    """Return the class that `type: name` means.

    Raises:
        ConfigError: There is none, it cannot be imported, or it is not of this kind.
    """
    if ":" in name:
        module_name, _, path = name.partition(":")
    else:
        names = _members(kind)
        if name not in names:
            raise ConfigError(
                f"no {title(kind)} called '{name}'. {nearest(name, names)}Known: {', '.join(names) or 'none'}; "
                f"or give 'package.module:Class'"
            )
        module_name, path = names[name]
    found: Any = _import(module_name, name)
    for part in path.split("."):
        if part not in vars(found):
            raise ConfigError(f"'{name}': there is no {part!r} in {module_name}")
        found = vars(found)[part]
        if not isinstance(found, type):
            raise ConfigError(f"'{name}' is not a class")
    _fits(kind, found, name)
    return found


def _import(module: str, name: str) -> object:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"'{name}' is not of the form 'package.module:Class'")
    try:
        with users_code(f"'{name}': importing {module}"):
            return importlib.import_module(module)
    except RewardError as error:
        raise ConfigError(str(error)) from error


def _fits(kind: Kind, found: type, name: str) -> None:
    if not dataclasses.is_dataclass(found):
        raise ConfigError(f"'{name}': {found.__name__} is not a dataclass, so a config cannot construct it")
    named = (name for name in vars(kind) if name == "__call__" or not name.startswith("_"))
    members = {*inspect.get_annotations(kind), *named} - {"home"}
    own = {*dir(found), *(field.name for field in dataclasses.fields(found))}
    if lacking := sorted(members - own):
        raise ConfigError(
            f"'{name}': {found.__name__} is not {_article(title(kind))}: it lacks {', '.join(lacking)}; inherit from "
            f"{kind.__module__}.{kind.__name__}, and write what that leaves open"
        )


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def short_name(kind: Kind, cls: type) -> str:
    """Return what `type:` says for this class: the file name where the folder rule finds it, else the import path.

    Raises:
        ConfigError: If the class is made inside a function, where nothing can import it from.
    """
    if "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{cls.__qualname__}: a class that is made inside a function cannot be named in a config; write it at the "
            f"top of {cls.__module__}"
        )
    name = cls.__module__.rpartition(".")[2]
    if _members(kind).get(name) == (cls.__module__, cls.__qualname__):
        return name
    return f"{cls.__module__}:{cls.__qualname__}"
