"""The folder is the registry: which class a `type:` names.

A *kind* is a protocol with a `home`. `type: dance_sde` is the class in `<home>/dance_sde.py` whose name is the file's
without underscores, in any case (`DanceSDE`); `type: my_package.my_module:MyClass` is any class anywhere.
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
from pathlib import Path
from typing import Any, Protocol

from alignment._layers import nearest
from alignment.errors import ConfigError

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
    spec = importlib.util.find_spec(kind.home)
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError(f"{title(kind)}: its home {kind.home} is not a package")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    found = {}
    for module in sorted(pkgutil.iter_modules([str(folder) for folder in folders]), key=lambda module: module.name):
        for file in (folder / f"{module.name}.py" for folder in folders):
            name = _class_in(file) if file.is_file() and not module.name.startswith("_") else None
            if name is not None:
                found[module.name] = name
    return found


@functools.cache
def _class_in(file: Path) -> str | None:
    classes = (node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef))
    return next((name for name in classes if name.lower() == file.stem.replace("_", "").lower()), None)


def find(kind: Kind, name: str) -> type:
    """Return the class that `type: name` means.

    Raises:
        ConfigError: There is none, it cannot be imported, or it is not of this kind.
    """
    if ":" in name:
        module_name, _, path = name.partition(":")
    else:
        names = known(kind)
        if name not in names:
            raise ConfigError(
                f"no {title(kind)} called '{name}'. {nearest(name, names)}Known: {', '.join(names) or 'none'}; "
                f"or give 'package.module:Class'"
            )
        module_name, path = f"{kind.home}.{name}", names[name]
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
        return importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"'{name}': importing {module} failed ({error}))") from error


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
    """Return what `type:` says for this class: the file name where the folder rule finds it, else the import path."""
    module = cls.__module__.removeprefix(f"{kind.home}.")
    if module != cls.__module__ and known(kind).get(module) == cls.__qualname__:
        return module
    return f"{cls.__module__}:{cls.__qualname__}"
