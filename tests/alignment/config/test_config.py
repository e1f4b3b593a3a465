"""What a config means: scalars, layers, overrides, types, and that a resolved config is the run again."""

from __future__ import annotations

import shutil
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import registry, yaml_nodes
from alignment.config.build import build, resolved
from alignment.errors import ConfigError
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.measures.jpeg import Jpeg
from samplers.dynamics.base import Dynamics
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.ode import ODE
from samplers.windows.all import All
from samplers.windows.base import Window
from samplers.windows.branch import Branch
from samplers.windows.random import Random
from tests.support.recipe import Constant, Limits, Part, Recipe, load, write

# ----------------------------------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E+3", -1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("'1e-4'", "1e-4"),
        ("e4", "e4"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = yaml_nodes.plain(yaml_nodes.parse(f"key: {text}", "a.yaml"))
    assert read == {"key": value}
    assert type(read["key"]) is type(value)


# A plain value never holds what YAML has no way to write: lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))  # names have no null character
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)  # a config holds what float32 does, YAML more


def plain_values(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[object]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | TEXT,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
        max_leaves=12,
    )


@given(plain_values(st.floats(allow_nan=False)))
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert yaml_nodes.plain(yaml_nodes.parse(yaml_nodes.dump(value), "a.yaml")) == value


@given(st.text(string.digits + "+-.eEox_:~truefalsn", max_size=8))
def test_text_that_looks_like_something_else_stays_text(value: str) -> None:
    assert yaml_nodes.plain(yaml_nodes.parse(yaml_nodes.dump([value]), "a.yaml")) == [value]


def test_an_alias_is_written_out() -> None:
    assert yaml_nodes.plain(yaml_nodes.parse("a: &x {k: 1}\nb: *x", "a.yaml")) == {"a": {"k": 1}, "b": {"k": 1}}


# ------------------------------------------------------------------------------------------------------------ layers


def test_layers_lie_upon_each_other_left_to_right_then_the_file_then_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "name: first\ncount: 1\nrate: 1\ncall: {a: 1, b: {x: 1, y: 1}}", "parts/first.yaml")
    write(tmp_path, "count: 2\nrate: 2\ncall: {b: {y: 2}}", "parts/second.yaml")
    path = write(tmp_path, "extends: [parts/first.yaml, parts/second.yaml]\nrate: 3\ncall: {c: 3}")
    run = load(path, "switch=true", "call.b.z=4")
    assert (run.name, run.count, run.rate, run.switch) == ("first", 2, 3.0, True)
    assert run.call == {"a": 1, "b": {"x": 1, "y": 2, "z": 4}, "c": 3}


def test_extends_is_relative_to_the_file_and_may_be_one_name_and_go_on(tmp_path: Path) -> None:
    write(tmp_path, "name: base", "base.yaml")
    write(tmp_path, "extends: ../base.yaml\ncount: 2", "models/middle.yaml")
    assert load(write(tmp_path, "extends: models/middle.yaml")) == Recipe("base", count=2)


def test_another_type_drops_the_keys_of_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, "name: x\ndynamics: {type: dance_sde, eta: 0.7}", "base.yaml")
    assert load(write(tmp_path, "extends: base.yaml\ndynamics: {type: ode}")).dynamics == ODE()
    assert load(tmp_path / "base.yaml", "dynamics.type=ode").dynamics == ODE()
    assert load(tmp_path / "base.yaml", "dynamics={type: ode}").dynamics == ODE()


def test_the_same_type_keeps_them(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ndynamics: {type: dance_sde, eta: 0.7}")
    assert load(path, "dynamics.type=dance_sde").dynamics == DanceSDE(0.7)


def test_a_type_comes_before_its_fields_in_whatever_order_they_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ndynamics: {type: ode}")
    typed = ("dynamics.eta=0.2", "dynamics.type=dance_sde")
    assert load(path, *typed).dynamics == load(path, *reversed(typed)).dynamics == DanceSDE(0.2)


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    assert load(write(tmp_path, "name: x"), "count=1", "count=2").count == 2


def test_overrides_reach_into_lists_nulls_and_mappings(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nmany: [{weight: 1}, {weight: 2}]\nmaybe: null\nbetas: [0.1, 0.2]")
    run = load(path, "many.1.weight=5", "maybe.low=3", "betas.0=0.5", "parts.new.weight=7", "name=a=b c")
    assert run.many == (Part(1.0), Part(5.0))
    assert (run.maybe, run.betas, run.parts, run.name) == (Limits(3), (0.5, 0.2), {"new": Part(7.0)}, "a=b c")


def test_an_override_is_yaml(tmp_path: Path) -> None:
    run = load(write(tmp_path, "name: x"), "rate=1e-5", "targets=[a, 'b']", "maybe={low: 1}", "either='1'", "call.x=")
    assert (run.rate, run.targets, run.maybe, run.either, run.call) == (1e-5, ("a", "b"), Limits(1), "1", {"x": None})


# ------------------------------------------------------------------------------------------------------------- types


def test_a_number_may_be_written_without_a_point(tmp_path: Path) -> None:
    run = load(write(tmp_path, "name: x\nrate: 1"))
    assert run.rate == 1.0
    assert isinstance(run.rate, float)


@pytest.mark.parametrize("kind", [Dynamics, Window])
def test_every_file_of_a_folder_is_a_type(kind: type) -> None:
    names = registry.known(kind)
    assert names
    for name, cls in names.items():
        found = registry.find(kind, name)
        assert found.__name__ == cls
        assert registry.short_name(kind, found) == name


class Colour(Protocol):
    """A kind of the tests, at home in a package that they write."""

    home: ClassVar[str] = "paints"


@pytest.fixture
def paints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a colour in its folder and one further down, and files that hold none."""
    kind = "class Colour(Protocol):\n    home: ClassVar[str] = "
    colour = "from dataclasses import dataclass\nfrom paints.base import Colour\n\n@dataclass(frozen=True)\nclass "
    for file, text in {
        "__init__.py": "",
        "base.py": "from typing import ClassVar, Protocol\n\n"
        f"{kind}'paints'\nclass Brush(Protocol):\n    home: ClassVar[str] = 'paints.brushes'\n",
        "red.py": f"{colour}Red(Colour):\n    depth: int = 1\n",
        "mixing.py": "class Mixing(list):\n    pass\n",
        "pot.py": f"{colour}Pot:\n    litres: float = 1.0\n",
        "cold/__init__.py": "",
        "cold/base.py": "",
        "cold/light_blue.py": f"{colour}LightBlue(Colour):\n    depth: int = 2\n",
        "brushes/__init__.py": "",
        "brushes/flat.py": f"{colour}Flat(Colour):\n    pass\n",
        "papers/__init__.py": "",
        "papers/base.py": f"{kind}'paints.papers'\n",
        "papers/rough.py": f"{colour}Rough(Colour):\n    pass\n",
    }.items():
        path = tmp_path / "paints" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "paints"
    for name in [name for name in sys.modules if name.partition(".")[0] == "paints"]:
        del sys.modules[name]


@pytest.mark.usefixtures("paints")
def test_folders_below_a_home_belong_to_it_but_for_the_homes_of_other_kinds() -> None:
    assert registry.known(Colour) == {"light_blue": "LightBlue", "red": "Red"}
    found = registry.find(Colour, "light_blue")
    assert found.__module__ == "paints.cold.light_blue"
    assert registry.short_name(Colour, found) == "light_blue"


def test_a_name_may_occur_once_in_a_home(paints: Path) -> None:
    shutil.copy(paints / "red.py", paints / "cold/red.py")
    with pytest.raises(ConfigError, match=r"two files hold the colour 'red', paints\.\S+ and paints\.\S+: rename one"):
        registry.known(Colour)


def test_any_class_is_a_type_by_its_import_path(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ndynamics: {type: 'tests.support.recipe:Constant', level: 0.25}")
    assert load(path).dynamics == Constant(0.25)
    assert "'tests.support.recipe:Constant'" in resolved(load(path))


def test_modules_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "from tests.support.recipe import Constant\nclass Mine(Constant): pass\n", "rules_of_mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    registry.look_here()
    found = registry.find(Dynamics, "rules_of_mine:Mine")
    assert found.__module__ == "rules_of_mine"


def test_types_nest(tmp_path: Path) -> None:
    text = "name: x\nreward: {type: weighted, parts: {small: {reward: {type: jpeg, quality: 50}, weight: 2}}}"
    assert load(write(tmp_path, text)).reward == Weighted({"small": WeightedPart(Jpeg(50), 2.0)})


# -------------------------------------------------------------------------------------------------------- round trip

WINDOWS = st.sampled_from([All(), All(drop_last=False), Random(among=(1, 2)), Branch(steps=(0,))])
PARTS = st.builds(Part, weight=FINITE, window=WINDOWS)
RECIPES = st.builds(
    Recipe,
    name=TEXT,
    dynamics=st.sampled_from([ODE(), DanceSDE(0.1), Constant(2.0)]),
    reward=st.none() | st.builds(Jpeg, quality=st.integers(1, 95), incompressible=st.booleans()),
    limits=st.builds(Limits, low=st.integers(-5, 5)),
    maybe=st.none() | st.builds(Limits, low=st.integers(-5, 5)),
    rate=FINITE,
    count=st.integers(),
    switch=st.booleans(),
    mode=st.sampled_from(["error", "drop", "keep"]),
    weight=st.sampled_from(["true", "equal"]),
    betas=st.tuples(FINITE, FINITE),
    targets=st.none() | st.lists(TEXT, max_size=3).map(tuple),
    modes=st.lists(st.sampled_from("ab"), max_size=3).map(tuple),
    many=st.lists(PARTS, max_size=2).map(tuple),
    parts=st.dictionaries(TEXT, PARTS, max_size=2),
    call=st.dictionaries(TEXT, plain_values(FINITE), max_size=3),
    either=st.none() | st.integers() | TEXT,
)


@given(RECIPES)
def test_a_resolved_config_builds_an_equal_run(run: Recipe) -> None:
    assert build(Recipe, yaml_nodes.parse(resolved(run), "resolved.yaml")) == run


def test_resolving_twice_changes_nothing(tmp_path: Path) -> None:
    once = resolved(load(write(tmp_path, "name: x\nreward: {type: jpeg}")))
    assert resolved(load(write(tmp_path, once))) == once


def test_fields_that_are_computed_are_not_configured() -> None:
    @dataclass(frozen=True)
    class Plain:
        width: int = 2

    assert resolved(Plain()) == "{width: 2}\n"
