"""Recipes are found by their names, from wherever one stands, and by where they stood before they had folders."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from alignment.config.load import load
from alignment.config.shipped import CONFIGS, FOLDERS, LAYERS, layers, recipes
from alignment.errors import ConfigError

ROOT = Path(__file__).parents[3]
OTHERS = ("accelerate", "architectures")
"""Folders of what other programs read, or of what is no run."""


def test_a_recipe_stands_in_a_folder_and_its_name_is_its_own() -> None:
    files = [path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")]
    assert {path.parts[0] for path in files} == {*FOLDERS, LAYERS, *OTHERS}
    names = Counter(path.stem for path in files if path.parts[0] in FOLDERS)
    assert set(names.values()) == {1}
    assert set(names) == set(recipes())


@pytest.mark.parametrize("name", recipes())
def test_its_name_and_its_old_place_mean_the_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run = load(recipes()[name])
    assert load(name) == run
    with pytest.warns(UserWarning, match=rf"configs/{name}\.yaml stands in configs/\w+/{name}\.yaml now"):
        assert load(f"configs/{name}.yaml") == run


@pytest.mark.parametrize("extends", ["quickstart", recipes()["quickstart"]], ids=["name", "path"])
def test_what_ships_beside_a_recipe_is_found_from_any_folder(
    extends: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"extends: {extends}\nname: mine\ndata: {{prompts: mine/prompts.txt}}\n")
    run = load("mine.yaml")
    assert run.policy.pipeline == str(ROOT / "assets" / "tiny_flux")
    assert run.evaluation.prompts == str(ROOT / "assets" / "prompts" / "shapes_test.txt")
    assert run.data.prompts == "mine/prompts.txt"
    (tmp_path / "assets" / "tiny_flux").mkdir(parents=True)
    assert load("mine.yaml").policy.pipeline == "assets/tiny_flux"


def test_a_file_of_ones_own_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text(f"extends: {recipes()['quickstart_nft']}\nname: mine\n")
    assert load("quickstart").name == "mine"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("quickstrt_nft", " Did you mean 'quickstart_nft'?"),
        ("configs/quickstrt_nft.yaml", " Did you mean 'quickstart_nft'?"),
        ("mine/quickstart.yaml", ""),
        ("quickstart.yaml", ""),
        ("nothing_like_it", ""),
        ("algorithms/dnacegrpo", " Did you mean 'algorithms/dancegrpo'?"),
    ],
)
def test_a_missing_config_is_no_recipe(path: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path!r}: there is no such config file.{hint}"


GIVEN = {"source.prompts": "16", "source.reward": "{type: hpsv2}"}
MODEL = """
policy: {pipeline: any/model, call: {height: 512, width: 512, num_inference_steps: 20}}
data: {prompts: some.jsonl}
"""


@pytest.mark.parametrize("name", layers())
def test_a_layer_on_a_model_lacks_what_it_says_that_it_lacks(name: str, tmp_path: Path) -> None:
    own = (CONFIGS / f"{name}.yaml").read_text()
    head = " ".join(line.lstrip("# ") for line in own.splitlines() if line.startswith("#"))
    assert "to be laid on a " in head
    assert "Values: " in head
    assert "policy:" not in own
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "mine.yaml").write_text(f"extends: [model.yaml, {name}]\nname: mine\nsteps: 1\n")
    asked = set(re.findall(r"source\.\w+", head))
    run = load(tmp_path / "mine.yaml", [f"{key}={GIVEN[key]}" for key in asked])
    assert run.policy.pipeline == "any/model"
    for key in asked:
        with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
            load(tmp_path / "mine.yaml", [f"{other}={GIVEN[other]}" for other in asked - {key}])


def test_a_layer_changes_the_algorithm_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: [flux_dev_lora_grpo, algorithms/nft]\nname: mine\nsource: {reward: {type: pickscore}}\n"
    )
    run, model, donor = load(tmp_path / "mine.yaml"), load("flux_dev_lora_grpo"), load("sd35_medium_lora_nft")
    assert run.policy == model.policy
    assert (run.source, run.objective, run.snapshots) == (donor.source, donor.objective, donor.snapshots)
