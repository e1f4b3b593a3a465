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
"""Folders of whole runs. What stands in the others is a layer of such a run, or is read by other programs."""


def recipes() -> dict[str, Path]:
    """Return the file of every recipe by its name."""
    return {file.stem: file for folder in FOLDERS for file in sorted((CONFIGS / folder).glob("*.yaml"))}


def may_mean_a_recipe(path: Path) -> bool:
    """Say whether a path where no file is looks like a recipe's.

    A recipe is its name alone, such as `quickstart_nft`, or `configs/NAME.yaml`, where all recipes stood once.
    """
    name_alone = path.name == str(path) and not path.suffix
    return name_alone or (path.suffix == ".yaml" and path.parent.resolve() == CONFIGS.resolve())


def meant(path: Path) -> Path | None:
    """Return the recipe that a path means where no file is; None if it means none."""
    found = recipes().get(path.stem) if may_mean_a_recipe(path) else None
    return None if found is None else Path(from_here(found))


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
