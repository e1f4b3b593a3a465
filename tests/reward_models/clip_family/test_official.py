"""Rewards through their authors' packages: stand-ins are written that have the packages' documented functions.

`make oracle` asks the packages themselves.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignment.cli import main as cli
from evals.listing import rewards
from reward_models.base import Media, RewardError, RewardModel, load_reward
from reward_models.clip_family.hpsv2 import HPSv2
from reward_models.clip_family.imagereward import ImageReward
from tests.support.served import served

CPU = torch.device("cpu")
PACKAGES = {
    "hpsv2/__init__.py": "",
    # Theirs, too, silences the warnings of the whole process.
    "hpsv2/img_score.py": """
import warnings
import numpy as np

warnings.filterwarnings("ignore", category=UserWarning)


def score(img_path, prompt, cp=None, hps_version="v2.0"):
    with open(cp) as file:
        factor = float(file.read())
    return [np.float32(factor * np.asarray(one)[..., 0].mean() * len(prompt)) for one in img_path]
""",
    "ImageReward/__init__.py": """
import numpy as np


class Model:
    def __init__(self, factor):
        self.factor = factor

    def score(self, prompt, image):
        if isinstance(image, list):
            scores = [self.score(prompt, one) for one in image]
            return scores[0] if len(scores) == 1 else scores
        return float(self.factor * np.asarray(image)[..., 0].mean() * len(prompt))


def load(name="ImageReward-v1.0", device="cpu", download_root=None, med_config=None):
    with open(name) as file, open(med_config) as config:
        return Model(float(file.read()) + float(config.read()))
""",
}
NAMES = {"hpsv2": "hpsv2", "imagereward": "image-reward"}
"""Types of reward, and their extras."""


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("hpsv2", "ImageReward")]:
        del sys.modules[name]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write the stand-ins where Python finds them, and a checkpoint of each."""
    for name, text in PACKAGES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "weights.pt").write_text("0.5")
    (tmp_path / "med.json").write_text("0")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path
    forget()


def model(name: str, folder: Path) -> RewardModel:
    weights = str(folder / "weights.pt")
    if name == "hpsv2":
        return HPSv2(weights=weights, implementation="official")
    return ImageReward(weights=weights, med_config=str(folder / "med.json"), implementation="official")


@pytest.fixture
def clips() -> Media:
    levels = torch.randint(0, 256, (3, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return Media(levels / 255, fps=8.0)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_scored_by_the_package(name: str, packages: Path, clips: Media) -> None:
    prompts = ["a cat", "a dog", "a cat"]
    got = load_reward(model(name, packages), device=CPU)(media=clips, prompts=prompts).value
    red = (clips.pixels[:, :, 0] * 255).mean((1, 2, 3))
    torch.testing.assert_close(got, 0.5 * red * torch.tensor([float(len(prompt)) for prompt in prompts]))


@pytest.mark.parametrize("name", NAMES)
def test_a_server_scores_by_the_package(name: str, packages: Path, clips: Media) -> None:
    from reward_models.serving.remote import Remote

    own = model(name, packages)
    with served(own) as url:
        asked = load_reward(Remote(url), device=CPU)(media=clips, prompts=["a"] * 3)
    assert torch.equal(asked.value, load_reward(own, device=CPU)(media=clips, prompts=["a"] * 3).value)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_is_promised(name: str, packages: Path, clips: Media) -> None:
    own = model(name, packages)
    assert not own.differentiable
    assert type(own)().differentiable
    assert {one.name: one.differentiable for one in rewards()}[name] == "yes"
    clips.pixels.requires_grad_()
    assert not load_reward(own, device=CPU)(media=clips, prompts=["a"] * 3).value.requires_grad


def test_the_package_does_not_silence_other_warnings(packages: Path) -> None:
    before = list(warnings.filters)
    load_reward(model("hpsv2", packages), device=CPU)
    assert list(warnings.filters) == before


@pytest.mark.parametrize(("name", "extra"), NAMES.items())
def test_a_missing_package_is_named_with_its_extra(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hpsv2", None)
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    reward = f"source.reward={{type: {name}, implementation: official}}"
    assert cli.run(["train", "quickstart", reward, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"source.reward: {name}: implementation: official needs the package {extra}" in said
    assert f"pip install 'visalign[{extra}]'" in said
    assert f"visalign serve-reward {name} implementation=official" in said


@pytest.mark.parametrize(
    ("name", "module"), [("hpsv2", "hpsv2/img_score.py"), ("imagereward", "ImageReward/__init__.py")]
)
@pytest.mark.parametrize("fault", ["from transformers import no_longer_there", "raise AttributeError('x')"])
def test_a_package_of_other_versions_is_named_with_the_way_out(
    name: str, module: str, fault: str, packages: Path
) -> None:
    (packages / module).write_text(fault)
    with pytest.raises(RewardError, match=rf"cannot be imported .*serve-reward {name} implementation=official"):
        load_reward(model(name, packages), device=CPU)


def test_what_the_package_does_not_read_is_refused(packages: Path) -> None:
    own = HPSv2(implementation="official", dtype="bfloat16", antialias=False)
    with pytest.raises(RewardError, match=r"hpsv2: antialias, dtype is for implementation: native; .* Leave it out"):
        own.check(())
