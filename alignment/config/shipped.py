"""The recipes: configs that ship. Where they stand, which of them a name means, and where their paths lead."""

from __future__ import annotations

import os
from pathlib import Path

import alignment
from alignment.config.yaml_nodes import Node

_HOME = Path(alignment.__file__).parent
CONFIGS = _HOME / "configs" if (_HOME / "configs").is_dir() else _HOME.parent / "configs"
"""In the package where it was installed from a wheel, beside it in a checkout."""

FOLDERS = ("quickstart", "models")
"""Folders of whole runs."""
LAYERS = "algorithms"
"""The folder of layers: what an algorithm settles of a run, to be laid on a model's."""


def recipes() -> dict[str, Path]:
    """Return the file of every recipe by its name."""
    return {file.stem: file for folder in FOLDERS for file in sorted((CONFIGS / folder).glob("*.yaml"))}


def layers() -> dict[str, Path]:
    """Return the file of every layer by its name, `algorithms/NAME`."""
    return {f"{LAYERS}/{file.stem}": file for file in sorted((CONFIGS / LAYERS).glob("*.yaml"))}


def called(folder: Path, name: str) -> str | None:
    """Return what a config that ships would be called, where no file in `folder` has this name; None if nothing.

    Recipes are called by their names, such as `quickstart_nft`, layers `algorithms/NAME`. `configs/NAME.yaml`, where
    all recipes stood once, is a recipe's name, too.
    """
    path = Path(name)
    if not path.suffix:
        return name if path.name == name or path.parent == Path(LAYERS) else None
    flat = path.suffix == ".yaml" and (folder / path).parent.resolve() == CONFIGS.resolve()
    return path.stem if flat else None


def ships(path: Path) -> bool:
    """Say whether a config is one of those that ship."""
    return path.resolve().is_relative_to(CONFIGS.resolve())


def placed(node: Node) -> Node:
    """Return values of a config that ships, with its paths leading from the current folder to what ships beside it.

    A path that leads somewhere from the current folder, or nowhere from the folder of all configs either, stays.
    """
    match node.value:
        case dict():
            return Node({key: placed(child) for key, child in node.value.items()}, node.where)
        case list():
            return Node([placed(child) for child in node.value], node.where)
        case str() if "/" in node.value and not Path(node.value).exists():
            there = CONFIGS.parent / node.value
            return Node(from_here(there), node.where) if there.exists() else node
        case _:
            return node


def from_here(path: Path) -> str:
    """Return the shortest way to a path: relative where it is inside the current folder."""
    whole = path.resolve()
    return os.path.relpath(whole) if whole.is_relative_to(Path.cwd()) else str(whole)
