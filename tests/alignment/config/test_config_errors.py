"""What a config refuses, and what it says: file, line, key path, what was got, what was expected, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.config import registry, yaml_nodes
from alignment.config.build import fields_of
from alignment.errors import ConfigError
from samplers.dynamics.base import Dynamics
from tests.support.recipe import Recipe, load, write


def refused(folder: Path, text: str, *overrides: str) -> str:
    """Return the message, with the folder of the test taken out."""
    with pytest.raises(ConfigError) as caught:
        load(write(folder, text), *overrides)
    return str(caught.value).replace(f"{folder}/", "")


DYNAMICS = f"{', '.join(registry.known(Dynamics))}; or give 'package.module:Class'"

SCHEMA = {
    "a misspelt key": (
        "name: x\nlimits:\n  low: 1\n  hihg: 2",
        "a.yaml:4: limits.hihg: Limits has no such field. Did you mean 'high'? Fields: low, high.",
    ),
    "a key like no other": (
        "name: x\nlimits: {low: 1, zzz: 2}",
        "a.yaml:2: limits.zzz: Limits has no such field. Fields: low, high.",
    ),
    "a missing field": (
        "name: x\nlimits:\n  high: 1",
        "a.yaml:2: limits: Limits needs 'low' (a whole number), which is missing. Fields: low, high.",
    ),
    "a misspelt type": (
        "name: x\ndynamics: {type: dance_sd}",
        f"a.yaml:2: dynamics.type: no dynamics called 'dance_sd'. Did you mean 'dance_sde'? Known: {DYNAMICS}",
    ),
    "a missing type": (
        "name: x\ndynamics: {eta: 0.1}",
        f"a.yaml:2: dynamics: 'type' is missing. Known: {DYNAMICS}",
    ),
    "a type that is no name": (
        "name: x\ndynamics: {type: 3}",
        "a.yaml:2: dynamics.type: got the number 3, expected a name",
    ),
    "a private file": (
        "name: x\ndynamics: {type: _renoise}",
        "a.yaml:2: dynamics.type: no dynamics called '_renoise'.",
    ),
    "a field of another type": (
        "name: x\ndynamics: {type: ode, eta: 0.1}",
        "a.yaml:2: dynamics.eta: ODE has no such field. Fields: none.",
    ),
    "a kind that is no mapping": (
        "name: x\ndynamics: ode",
        "a.yaml:2: dynamics: got the text 'ode', expected dynamics (a mapping with 'type')",
    ),
    "a number in quotes": ("name: x\nrate: '1e-4'", "a.yaml:2: rate: got the text '1e-4', expected a number"),
    "text for a number": ("name: x\nrate: fast", "a.yaml:2: rate: got the text 'fast', expected a number"),
    "true for a number": ("name: x\ncount: true", "a.yaml:2: count: got true, expected a whole number"),
    "true for a float": ("name: x\nrate: true", "a.yaml:2: rate: got true, expected a number"),
    "a float for an integer": ("name: x\ncount: 1.0", "a.yaml:2: count: got the number 1.0, expected a whole number"),
    "a number for true": ("name: x\nswitch: 1", "a.yaml:2: switch: got the number 1, expected true or false"),
    "yes for true": ("name: x\nswitch: yes", "a.yaml:2: switch: got the text 'yes', expected true or false"),
    "a number for text": ("name: 3", "a.yaml:1: name: got the number 3, expected text"),
    "null where none may be": ("name: x\ncount:", "a.yaml:2: count: got null, expected a whole number"),
    "a misspelt choice": (
        "name: x\nmode: eror",
        "a.yaml:2: mode: got the text 'eror', expected one of 'error', 'drop', 'keep'. Did you mean 'error'?",
    ),
    "a choice that YAML takes for something else": (
        "name: x\nweight: true",
        "a.yaml:2: weight: got true, expected one of 'true', 'equal'. Put it in quotes: 'true'",
    ),
    "a choice in a list": (
        "name: x\nmodes: [a,\n  c]",
        "a.yaml:3: modes.1: got the text 'c', expected one of 'a', 'b'",
    ),
    "text for a list": (
        "name: x\ntargets: all",
        "a.yaml:2: targets: got the text 'all', expected a list of text or null",
    ),
    "a list for a mapping": (
        "name: x\nlimits: [1]",
        "a.yaml:2: limits: got a list of 1, expected Limits (a mapping)",
    ),
    "a list too short": ("name: x\nbetas: [0.9]", "a.yaml:2: betas: got a list of 1, expected a list of 2"),
    "a union": (
        "name: x\neither: 1.5",
        "a.yaml:2: either: got the number 1.5, expected a whole number or text or null",
    ),
    "deep down": (
        "name: x\nparts:\n  one:\n    window:\n      type: random\n      size: big",
        "a.yaml:6: parts.one.window.size: got the text 'big', expected a whole number",
    ),
    "what a class says itself": (
        "name: x\nlimits:\n  low: 11",
        "a.yaml:2: limits: low 11 is above high 10",
    ),
    "what a reward says itself": (
        "name: x\nreward: {type: jpeg, quality: 200}",
        "a.yaml:2: reward: jpeg: quality is from 1 to 95, got 200",
    ),
    "what a dynamics says itself": (
        "name: x\ndynamics:\n  type: dance_sde\n  eta: -1",
        "a.yaml:2: dynamics: eta must be >= 0 and finite, got -1.0",
    ),
}


@pytest.mark.parametrize(("text", "message"), SCHEMA.values(), ids=SCHEMA.keys())
def test_schema(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


IMPORTS = {
    "no such module": (
        "nowhere.at_all:X",
        "importing nowhere.at_all raised ModuleNotFoundError: No module",
    ),
    "no such class": ("tests.support.recipe:Nothing", "there is no 'Nothing' in tests.support.recipe"),
    "no class": ("tests.support.recipe:load", "'tests.support.recipe:load' is not a class"),
    "no dataclass": ("tests.support.recipe:Undressed", "Undressed is not a dataclass"),
    "not of this kind": (
        "tests.support.recipe:Unfit",
        "Unfit is not a dynamics: it lacks marginal, needs_flow, noise, step, stochastic",
    ),
    "not a module": ("../x:Y", "is not of the form 'package.module:Class'"),
    "an empty module": (":Y", "is not of the form 'package.module:Class'"),
}


@pytest.mark.parametrize(("name", "message"), IMPORTS.values(), ids=IMPORTS.keys())
def test_types_by_import_path(tmp_path: Path, name: str, message: str) -> None:
    said = refused(tmp_path, f"name: x\ndynamics: {{type: '{name}'}}")
    assert said.startswith(f"a.yaml:2: dynamics.type: '{name}'")
    assert message in said


AT_IMPORT = {
    "syntax": ("class Broken(:", "raised SyntaxError: "),
    "raises": ("1 / 0", "raised ZeroDivisionError: division by zero"),
    "misses": ("import nowhere_at_all", "raised ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "leaves": ("import sys; sys.exit('no GPU here')", "raised SystemExit: no GPU here"),
    "complains at length": ("raise RuntimeError('one\\n\\ntwo')", "raised RuntimeError: one two"),
}


@pytest.mark.parametrize("case", AT_IMPORT)
@pytest.mark.parametrize("what", ["dynamics: {type: 'MODULE:X'}", "reward: {type: 'MODULE:X'}"])
def test_a_module_that_cannot_be_imported_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, what: str
) -> None:
    text, says = AT_IMPORT[case]
    module = f"broken_{case.partition(' ')[0]}"
    write(tmp_path, text, f"{module}.py")
    monkeypatch.syspath_prepend(tmp_path)
    told = refused(tmp_path, f"name: x\n{what.replace('MODULE', module)}")
    assert f"'{module}:X': importing {module} {says}" in told
    assert "\n" not in told


SYNTAX = {
    "a key twice": ("name: x\nrate: 1\nrate: 2", "a.yaml:3: the key 'rate' is given twice, first at a.yaml:2"),
    "a key twice, deep": ("limits: {low: 1, low: 2}", "a.yaml:1: the key 'low' is given twice"),
    "a tab": ("limits:\n\tlow: 1", "a.yaml:2: a tab where YAML wants spaces"),
    "a byte-order mark": ("\ufeffname: x", "a.yaml:1: starts with a byte-order mark"),
    "a python tag": (
        "name: !!python/object/apply:os.getcwd []",
        "a.yaml:1: the tag !!python/object/apply:os.getcwd is",
    ),
    "a tag of one's own": ("name: x\nrate: !rate 1", "a.yaml:2: the tag !rate is not allowed"),
    "a tag that does not fit": ("rate: !!int x", "a.yaml:1: 'x' is not a valid int"),
    "a key that is a number": ("name: x\n1: 2", "a.yaml:2: a key is text, this one is the number 1; put it in quotes"),
    "a key that is a list": ("[1]: 2", "a.yaml:1: a key is text, this one is a list of 1"),
    "an unknown alias": ("name: *x", "a.yaml:1: found undefined alias 'x'"),
    "an alias of itself": ("call: &x {a: *x}", "a.yaml:1: values are nested more than"),
    "a deep list": ("name: " + "[" * 2_000, "a.yaml:1: values are nested more than"),
    "an open quote": ("name: 'x\n", "a.yaml:"),
    "an open bracket": ("name: [x\n", "a.yaml:"),
    "two documents": ("name: x\n---\nname: y", "a.yaml:2: expected a single document"),
    "a control character": ("name: x\nrate: \x07", "a.yaml:2: the character '\\x07' is not allowed"),
    "an escape beyond Unicode": ('name: "\\UFFFFFFFF"', "a.yaml: not valid YAML"),
    "half a surrogate": ('name: "\\ud800"', "a.yaml:1: '\\ud800' is not a valid str"),
    "a number without end": ("count: " + "9" * 5_000, "a.yaml:1: a whole number of 5000 digits"),
    "not a number": ("rate: .nan", "a.yaml:1: .nan is not a number"),
    "nothing": ("", "a.yaml:1: a config is a mapping of keys to values; this file is null"),
    "a list": ("- name: x", "a.yaml:1: a config is a mapping of keys to values; this file is a list of 1"),
}


@pytest.mark.parametrize(("text", "message"), SYNTAX.values(), ids=SYNTAX.keys())
def test_syntax(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_aliases_of_aliases_end_early(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    assert f"more than {yaml_nodes.MAX_NODES} values" in refused(tmp_path, "\n".join(lines))


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: x\nmode: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: not UTF-8"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize("letter", ["x", "\u20ac", "\U0001f642"])
@pytest.mark.parametrize("megabytes", [1, 10])
def test_a_file_of_megabytes_is_no_config(tmp_path: Path, letter: str, megabytes: int) -> None:
    line = f"- {letter * 100}\n"
    (tmp_path / "a.yaml").write_bytes(b"steps:\n" + line.encode() * (megabytes * 2**20 // len(line.encode()) + 1))
    with pytest.raises(ConfigError, match=r"a\.yaml: more than 262,144 characters; a config names files of prompts"):
        load(tmp_path / "a.yaml")


def test_a_null_character_is_refused_with_the_line(tmp_path: Path) -> None:
    text = 'name: x\npolicy:\n  pipeline: "some\\0where"\n'
    assert refused(tmp_path, text).startswith("a.yaml:3: 'some\\x00where' has a null character in it")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "name: x", "quickstart.yaml")
    with pytest.raises(ConfigError, match=r"no such config file\. Did you mean '.*quickstart\.yaml'\?"):
        load(tmp_path / "quikstart.yaml")


def test_a_missing_file_does_not_name_any_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "name: x", "wan21_grpo.yaml")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nothere.yaml")
    assert "Did you mean" not in str(caught.value)


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


EXTENDS = {
    "a missing one": ("name: x\nextends: b.yaml", "a.yaml:2: extends: 'b.yaml': there is no such config file"),
    "the second missing": ("extends: [ok.yaml,\n b.yaml]", "a.yaml:2: extends: 'b.yaml': there is no such config file"),
    "itself": ("extends: a.yaml", "a.yaml:1: extends: a.yaml goes round"),
    "in a circle": ("extends: round.yaml", "round.yaml:1: extends: a.yaml goes round"),
    "too many": ("extends: deep1.yaml", "deep8.yaml:1: extends: deep9.yaml is too deep: at most 8 files may extend"),
    "a number": ("extends: 3", "a.yaml:1: extends: expected a file name or a list of them, got the number 3"),
    "a list of numbers": ("extends: [3]", "a.yaml:1: extends: expected a file name or a list of them"),
    "a fault in another file": ("name: x\nextends: bad.yaml", "bad.yaml:2: rate: got the text 'x', expected a number"),
    "a wrong type from another file": ("extends: [ok.yaml]\nlimits: 3", "a.yaml:2: limits: got the number 3"),
}


@pytest.mark.parametrize(("text", "message"), EXTENDS.values(), ids=EXTENDS.keys())
def test_extends(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "name: y", "ok.yaml")
    write(tmp_path, "extends: a.yaml", "round.yaml")
    for n in range(1, 10):
        write(tmp_path, f"extends: deep{n + 1}.yaml", f"deep{n}.yaml")
    write(tmp_path, "count: 1\nrate: x", "bad.yaml")
    assert refused(tmp_path, text).startswith(message)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    text = "limits: {high: 3}\nmaybe:\n  high: 2"
    assert refused(tmp_path, text).splitlines() == [
        "a.yaml:1: Recipe needs 'name' (text), which is missing. Fields: " + f"{', '.join(fields_of(Recipe))}.",
        "a.yaml:1: limits: Limits needs 'low' (a whole number), which is missing. Fields: low, high.",
        "a.yaml:2: maybe: Limits needs 'low' (a whole number), which is missing. Fields: low, high.",
    ]


def test_a_value_that_was_typed_is_named_where_a_class_refuses_it(tmp_path: Path) -> None:
    told = refused(tmp_path, "name: x\nlimits:\n  low: 1", "limits.high=0")
    assert told == "a.yaml:2, with limits.high from the command line: limits: low 1 is above high 0"
    told = refused(tmp_path, "name: x\nlimits:\n  low: 1", "limits={low: 3, high: 0}")
    assert told == "command line: limits: low 3 is above high 0"


OVERRIDES = {
    "no value": ("rate", "command line: expected key.path=value, got 'rate'"),
    "no key": ("=1", "command line: expected key.path=value, got '=1'"),
    "a hole in the path": ("limits..low=1", "command line: expected key.path=value, got 'limits..low=1'"),
    "a misspelt key": ("limits.lwo=1", "command line: limits.lwo: Limits has no such field. Did you mean 'low'?"),
    "a wrong type": ("rate=fast", "command line: rate: got the text 'fast', expected a number"),
    "not YAML": ("targets=[a", "command line: targets: while parsing a flow sequence"),
    "a tag": ("rate=!!python/name:os.x ", "command line: rate: the tag !!python/name:os.x is not allowed"),
    "inside a number": ("count.x=1", "command line: count.x: there is no 'x' inside the number 1 (a.yaml:2)"),
    "outside a list": ("betas.2=1", "command line: betas.2: '2' is not the index of one of 2 list items"),
    "into a list by name": ("betas.x=1", "command line: betas.x: 'x' is not the index of one of 2 list items"),
    "extends": ("extends=b.yaml", "command line: extends: Recipe has no such field"),
    "a path without end": (".".join("a" * 5_000) + "=1", "command line: expected key.path=value"),
}


@pytest.mark.parametrize(("override", "message"), OVERRIDES.values(), ids=OVERRIDES.keys())
def test_overrides(tmp_path: Path, override: str, message: str) -> None:
    assert refused(tmp_path, "name: x\ncount: 1\nbetas: [0.1, 0.2]", override).startswith(message)


# -------------------------------------------------------------------------------------------------------------- fuzz

GOOD = (
    "name: x\nlimits: {low: 1}\ndynamics: &d\n  type: dance_sde\n  eta: 1e-1\nparts: {a: {weight: 2}}\ntargets: [q]\n"
)
MARKS = ":-?,[]{}#&*!|>'\"%@`~=\t\n "
PIECES = st.sampled_from([*MARKS, "<<", "---", "...", "&x", "*d", "!!int"])
QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)


def only_config_errors(path: Path, *overrides: str) -> None:
    try:
        assert isinstance(load(path, *overrides), Recipe)
    except ConfigError as error:
        str(error).encode()  # a message that can be printed


@QUIET
@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_config_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    only_config_errors(tmp_path / "a.yaml")


@QUIET
@given(at=st.integers(0, len(GOOD)), cut=st.integers(0, 4), pieces=st.lists(PIECES | st.text(max_size=3), max_size=3))
def test_a_damaged_config_is_a_config_or_a_config_error(tmp_path: Path, at: int, cut: int, pieces: list[str]) -> None:
    text = GOOD[:at] + "".join(pieces) + GOOD[at + cut :]
    (tmp_path / "a.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    only_config_errors(tmp_path / "a.yaml")


@QUIET
@given(
    override=st.text(max_size=12)
    | st.builds("{}={}".format, st.sampled_from(["rate", "limits.low", "call.a"]), st.text())
)
def test_any_override_is_taken_or_a_config_error(tmp_path: Path, override: str) -> None:
    only_config_errors(write(tmp_path, GOOD), override)
