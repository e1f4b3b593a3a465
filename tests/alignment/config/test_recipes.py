"""Configs made from those that ship: the same run, whole, explained, and never over a file that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.cli import main as cli
from alignment.config.build import fields_of
from alignment.config.load import load
from alignment.config.recipes import init
from alignment.config.run import Run
from alignment.config.shipped import recipes
from alignment.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", recipes())
def test_it_is_the_run_of_the_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    written = tmp_path / "sub" / "mine.yaml"
    assert init(name, str(written)) == written
    assert load(written) == load(recipes()[name])
    text = written.read_text()
    assert "extends" not in text
    assert "\n# Prompts" not in text  # of inner parts: indented
    assert all(f"\n{field}:" in text for field in fields_of(Run) if field != "name")


def test_paths_lead_where_they_led(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["init", "configs/quickstart/quickstart.yaml"]) == 0
    assert cli.run(["train", "quickstart.yaml", "--dry-run"]) == 0
    assert load("quickstart.yaml").policy.pipeline == str(ROOT / "assets" / "tiny_flux")


def test_a_recipe_of_ones_own_is_made_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(f"extends: {recipes()['quickstart']}\nname: small\nsteps: 3\n")
    assert load(init("small.yaml", "whole.yaml")).steps == 3


def test_nothing_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"quickstart\.yaml is there already"):
        init("configs/quickstart.yaml", None)
    assert Path("quickstart.yaml").read_text() == "mine"


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'quickstrt_nft'\. Did you mean 'quickstart_nft'\?"):
        init("quickstrt_nft", None)


def test_recipes_are_listed_with_what_they_say_of_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes())
    assert all(len(line.split()) > 4 for line in lines)
