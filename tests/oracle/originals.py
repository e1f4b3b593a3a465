"""Scores of the authors' own packages, hpsv2 and image-reward, for random weights that are written beside them.

Runs in an environment of its own (see `tests/oracle/test_originals.py`), never in ours:

    python originals.py SIZE FOLDER

SIZE is "tiny" or "real". FOLDER gets the checkpoints, the pictures and `scores.json`. Only the sizes and the sources of
weights and vocabulary are changed in the packages; everything that scores is theirs.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import clip
import hpsv2.img_score
import ImageReward.models.BLIP.blip_pretrain as blip_pretrain
import torch
import transformers
from hpsv2.src.open_clip import create_model_and_transforms
from hpsv2.src.open_clip.factory import add_model_config
from ImageReward.ImageReward import MLP, ImageReward
from ImageReward.models.BLIP.vit import VisionTransformer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[2]))
from named_weights import PROMPTS, SIZES, filled, picture

from reward_models.base import Media, RewardModel
from reward_models.clip_family.hpsv2 import HPSv2
from reward_models.clip_family.imagereward import ImageReward as OurImageReward

aesthetic_score = importlib.import_module("ImageReward.models.AestheticScore")  # a class of the same name hides it
SIZE, FOLDER = sys.argv[1], Path(sys.argv[2])
TINY = SIZE == "tiny"
FILES = [str(FOLDER / f"{number}.png") for number in range(len(SIZES))]


def fill(model: torch.nn.Module) -> None:
    model.load_state_dict(filled(model.state_dict()))
    model.eval()


def score_officially(model: RewardModel) -> list[list[float]]:
    """Return what our way to the package gives; what it loads is what was scored here before."""
    scorer = model.load(device=torch.device("cpu"))
    levels = [torch.from_numpy(picture(number)).permute(2, 0, 1)[None, None] for number in range(len(SIZES))]
    return [[scorer(media=Media(one / 255), prompts=[text]).value.item() for one in levels] for text in PROMPTS]


def score_hpsv2() -> list[list[float]]:
    if TINY:
        add_model_config(FOLDER / "tiny-clip.json")
    model, _, preprocess = create_model_and_transforms(
        "tiny-clip" if TINY else "ViT-H-14", None, precision="amp", device="cpu", output_dict=True,
        light_augmentation=True, with_score_predictor=False, with_region_predictor=False,
    )  # fmt: skip
    fill(model)
    torch.save({"state_dict": model.state_dict()}, FOLDER / "HPS.pt")
    hpsv2.img_score.model_dict.update(model=model, preprocess_val=preprocess)
    return [[float(s) for s in hpsv2.img_score.score(FILES, text, cp=str(FOLDER / "HPS.pt"))] for text in PROMPTS]


def score_imagereward() -> list[list[float]]:
    def tokenizer() -> transformers.BertTokenizer:
        made = transformers.BertTokenizer.from_pretrained(str(FOLDER / "bert"))
        made.add_special_tokens({"bos_token": "[DEC]"})
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        return made

    def tiny_vit(vit: str, image_size: int, *rest: object) -> tuple[VisionTransformer, int]:
        return VisionTransformer(img_size=image_size, patch_size=32, embed_dim=64, depth=2, num_heads=4), 64

    blip_pretrain.init_tokenizer = tokenizer
    if TINY:
        blip_pretrain.create_vit = tiny_vit
    model = ImageReward(med_config=str(FOLDER / "med_config.json"))
    if TINY:
        model.mlp = MLP(48)
    fill(model)
    torch.save(model.state_dict(), FOLDER / "ImageReward.pt")
    utils = importlib.import_module("ImageReward.utils")
    utils.ImageReward = lambda device, med_config: model  # of whichever size
    with torch.no_grad():
        return [model.inference_rank(text, FILES)[1] for text in PROMPTS]


def score_aesthetic() -> list[float]:
    width = 64 if TINY else 768
    sizes = (width, 224, 2, 96, 32, 77, 49408, 48, 4, 2) if TINY else (width, 224, 24, 1024, 14, 77, 49408, 768, 12, 12)
    model = clip.model.CLIP(*sizes)
    fill(model)
    torch.save(model.state_dict(), FOLDER / "clip.pt")
    aesthetic_score.clip.load = lambda *_, **__: (model, clip.clip._transform(224))
    scorer = aesthetic_score.AestheticScore(download_root=None)
    scorer.mlp = aesthetic_score.MLP(width)
    scorer.mlp.load_state_dict(filled(scorer.mlp.state_dict()))
    scorer.eval()
    torch.save(scorer.mlp.state_dict(), FOLDER / "head.pth")
    with torch.no_grad():
        return scorer.inference_rank("", FILES)[1]


for number, file in enumerate(FILES):
    Image.fromarray(picture(number)).save(file)
scores: dict[str, object] = {"hpsv2": score_hpsv2(), "imagereward": score_imagereward(), "aesthetic": score_aesthetic()}
scores["hpsv2, officially"] = score_officially(HPSv2(weights=str(FOLDER / "HPS.pt"), implementation="official"))
files = {"weights": str(FOLDER / "ImageReward.pt"), "med_config": str(FOLDER / "med_config.json")}
scores["imagereward, officially"] = score_officially(OurImageReward(**files, implementation="official"))
(FOLDER / "scores.json").write_text(json.dumps(scores))
