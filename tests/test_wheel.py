"""What `pip install` brings: code, recipes, sizes, templates and types, and no package that is not ours."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


def test_the_wheel_brings_recipes_types_and_templates(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {f"alignment/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert shipped <= names
    packages = ("alignment", "reward_models", "samplers", "evals")
    assert {f"{name}/py.typed" for name in packages} <= names
    code = {str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name).rglob("*") if path.is_file()}
    assert {name for name in code if "__pycache__" not in name} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(packages)
