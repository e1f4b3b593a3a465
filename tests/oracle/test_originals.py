"""Our scores against those of the packages hpsv2 and image-reward, installed as they want to be.

Run with `make oracle`. The first time, an environment is made in `.oracle/` (or `$VISALIGN_ORACLE`), for the packages
need versions of torch and transformers that nothing else can live with: 6 GB, and less where PyTorch's index of CPU
builds can be reached. Real sizes take 10 GB of memory and some minutes more; leave them out with `-k tiny`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import PIL
import pytest
import torch

from reward_models.base import RewardModel
from reward_models.clip_family.aesthetic import Aesthetic
from reward_models.clip_family.hpsv2 import HPSv2
from reward_models.clip_family.imagereward import ImageReward
from tests.support.named_weights import PROMPTS, SIZES, picture
from tests.support.tiny_rewards import MED, OPEN_CLIP, bert_vocabulary, media

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore:.*tokens of a prompt")]

PARITY = 1e-4  # what a port has to reach; rounding alone is about 1e-6

# Pins under which both packages run unmodified; later ones lack what they import.
TORCH = ("torch==2.3.1", "torchvision==0.18.1")
CPU_BUILDS = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", "--timeout", "15", "--retries", "1")
"""Without the libraries for GPUs, which are most of the size; pip goes on without an index that does not answer."""
PINNED = (
    "numpy<2", "transformers==4.40.2", "timm==0.6.13", "diffusers==0.27.2",
    "huggingface_hub==0.23.5", "accelerate==0.30.1", "datasets==2.19.2", "protobuf<4", "regex", "ftfy", "einops",
    "pandas<2.3", "braceexpand", "sentencepiece", "webdataset==0.2.86", "pyarrow<17", "requests", "clint",
    "setuptools<70", "wheel",
    f"pillow=={PIL.__version__}",  # ours: which side of a picture is resized first depends on it
)  # fmt: skip
ALONE = ("hpsv2==1.2.0", "image-reward==1.5", "fairscale==0.4.13", "clip-anytorch==2.6.0")
"""Without what they say they need: it contradicts itself."""

OPENAI_TINY = {
    "embed_dim": 64, "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 96, "head_width": 96, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}  # fmt: skip
OPENAI_BIG = {
    "embed_dim": 768, "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}  # fmt: skip
BIG_MED = {**MED, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter of the packages' own environment, made where there is none."""
    folder = Path(os.environ.get("VISALIGN_ORACLE", Path(__file__).parents[2] / ".oracle"))
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists() and done.read_text(encoding="utf-8") == " ".join(PINNED):
        return python
    base = shutil.which("python3.11")
    if base is None:
        pytest.skip("the packages need Python 3.11")
    subprocess.run([base, "-m", "venv", "--clear", folder], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *CPU_BUILDS, *TORCH], check=True)
    subprocess.run([*install, *TORCH, *PINNED], check=True)
    subprocess.run([*install, "--no-deps", *ALONE], check=True)
    vocabulary = "bpe_simple_vocab_16e6.txt.gz"  # the wheel of hpsv2 forgot it, and open_clip has the same one
    ours = Path(open_clip.__file__).with_name(vocabulary)
    theirs = next(folder.glob("lib/python3.11/site-packages/hpsv2/src/open_clip"))
    shutil.copy(ours, theirs / vocabulary)
    done.write_text(" ".join(PINNED), encoding="utf-8")
    return python


@pytest.fixture(scope="module", params=["tiny", "real"])
def scored(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with checkpoints and the scores the packages give them."""
    folder, tiny = tmp_path_factory.mktemp(request.param), request.param == "tiny"
    (folder / "tiny-clip.json").write_text(json.dumps(OPEN_CLIP))
    (folder / "clip.json").write_text(json.dumps(OPENAI_TINY if tiny else OPENAI_BIG))
    # What `transformers` of then wants in a BERT configuration and ours does not.
    given = {"attention_probs_dropout_prob": 0.1, "add_cross_attention": True, "model_type": "bert"}
    (folder / "med_config.json").write_text(json.dumps({**given, **(MED if tiny else BIG_MED)}))
    bert_vocabulary(folder / "bert")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).with_name("originals.py")
    subprocess.run([python, script, request.param, folder], check=True, env=environment)
    yield folder
    shutil.rmtree(folder)


def ours(model: RewardModel, prompts: tuple[str, ...]) -> np.ndarray:
    scorer = model.load(device=torch.device("cpu"))
    pictures = [media(picture(number)) for number in range(len(SIZES))]
    return np.array([[scorer(media=one, prompts=[text]).value.item() for one in pictures] for text in prompts])


def difference(folder: Path, name: str, got: np.ndarray) -> float:
    theirs = np.array(json.loads((folder / "scores.json").read_text())[name])
    largest, spread = np.abs(got - theirs).max(), theirs.std()
    print(f"{name}: largest difference {largest:.1e}, spread of the scores {spread:.2g}")  # noqa: T201  # for `make oracle`
    assert theirs.shape == got.shape
    return largest


def test_hpsv2(scored: Path) -> None:
    architecture = str(scored / "tiny-clip.json") if "tiny" in scored.name else "ViT-H-14"
    model = HPSv2(weights=str(scored / "HPS.pt"), architecture=architecture)
    assert difference(scored, "hpsv2", ours(model, PROMPTS)) < PARITY


def test_imagereward(scored: Path) -> None:
    model = ImageReward(
        weights=str(scored / "ImageReward.pt"),
        med_config=str(scored / "med_config.json"),
        tokenizer=str(scored / "bert"),
        vision_heads=4 if "tiny" in scored.name else 16,
    )
    assert difference(scored, "imagereward", ours(model, PROMPTS)) < PARITY


@pytest.mark.parametrize("name", ["hpsv2", "imagereward"])
def test_our_way_to_the_package_gives_its_scores(scored: Path, name: str) -> None:
    scores = json.loads((scored / "scores.json").read_text())
    assert scores[f"{name}, officially"] == scores[name]


def test_aesthetic(scored: Path) -> None:
    model = Aesthetic(
        head=str(scored / "head.pth"), backbone=str(scored / "clip.pt"), architecture=str(scored / "clip.json")
    )
    assert difference(scored, "aesthetic", ours(model, ("",))[0]) < PARITY
