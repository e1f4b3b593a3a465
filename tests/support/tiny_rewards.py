"""Reward models small enough for a test, in the layouts of the official checkpoints.

Weights are a function of their official name and shape alone (`tests/support/named_weights.py`), so the scores that the
authors' packages give them can be kept as a few numbers in `tests/fixtures/rewards`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from reward_models.base import Media, RewardModel
from reward_models.clip_family.aesthetic import Aesthetic
from reward_models.clip_family.clip import CLIP
from reward_models.clip_family.consistency import Consistency
from reward_models.clip_family.hpsv2 import HPSv2
from reward_models.clip_family.imagereward import ImageReward
from reward_models.clip_family.pickscore import PickScore
from reward_models.measures.optical_flow import OpticalFlow
from reward_models.verifiers.geneval import GenEval
from reward_models.verifiers.geneval_rules import OBJECTS
from reward_models.verifiers.ocr import OCR
from reward_models.vlm_rewards.hpsv3 import HPSv3
from reward_models.vlm_rewards.scene_graph import SceneGraph
from reward_models.vlm_rewards.soft_tifa import SoftTIFA
from reward_models.vlm_rewards.videoalign import VideoAlign
from tests.support.bright_vlm import BrightVlm
from tests.support.named_weights import filled, weight

FIXTURES = Path(__file__).parents[1] / "fixtures" / "rewards"
QWEN = FIXTURES / "tinyqwen2vl"

OPEN_CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 96, "head_width": 24, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}
MED = {
    "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2,
    "vocab_size": 30524, "layer_norm_eps": 1e-12, "encoder_width": 768,
}  # fmt: skip


def media(levels: np.ndarray) -> Media:
    """Return one picture `[H, W, 3]` uint8 as media."""
    return Media(torch.from_numpy(levels).permute(2, 0, 1)[None, None].float() / 255)


def golden(name: str) -> dict:
    """Return what the authors' package said."""
    return json.loads((FIXTURES / f"golden_{name}.json").read_text(encoding="utf-8"))


def hpsv2(folder: Path) -> HPSv2:
    (folder / "tiny.json").write_text(json.dumps(OPEN_CLIP))
    state = filled(open_clip.CLIP(**OPEN_CLIP).state_dict())
    torch.save({"epoch": 1, "state_dict": state}, folder / "HPS.pt")
    return HPSv2(weights=str(folder / "HPS.pt"), architecture=str(folder / "tiny.json"))


def clip_folder(folder: Path) -> Path:
    """Write a CLIP model in transformers' layout, with a vocabulary of letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizerFast(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(words), "max_position_embeddings": 77},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(config)
    model.load_state_dict(filled(model.state_dict()))
    model.save_pretrained(folder)
    return folder


def clip(folder: Path) -> CLIP:
    return CLIP(weights=str(clip_folder(folder)))


def pickscore(folder: Path) -> PickScore:
    return PickScore(weights=str(clip_folder(folder)), processor=str(folder))


def aesthetic(folder: Path) -> Aesthetic:
    sizes = (24, 1024, 128, 64, 16, 1)
    shapes = {f"layers.{place}": sizes[i : i + 2] for i, place in enumerate((0, 2, 4, 6, 7))}
    head = {f"{layer}.weight": weight(f"{layer}.weight", (out, into)) for layer, (into, out) in shapes.items()}
    head |= {f"{layer}.bias": weight(f"{layer}.bias", (out,)) for layer, (_, out) in shapes.items()}
    torch.save(head, folder / "head.pth")
    return Aesthetic(head=str(folder / "head.pth"), backbone=str(clip_folder(folder)))


def bert_vocabulary(folder: Path) -> Path:
    """Write a vocabulary as large as BERT's, with the special words in their places."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*(chr(code) for code in range(33, 127) if not chr(code).isupper()), *"“”—…"]
    known = (
        "a photo of cat on wooden table two red cubes and blue sphere highly detailed naive cafe quotes emoji in the"
    )
    words += letters + [word for word in f"{known} prompt word 8k amp".split() if word not in letters]
    words += [f"##{letter}" for letter in letters]
    words += [f"zzfill{i}" for i in range(30522 - len(words))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def imagereward(folder: Path) -> ImageReward:
    shapes = golden("imagereward_tiny")["keys"]
    state = {
        name: torch.arange(512)[None] if "position_ids" in name else weight(name, tuple(shape))
        for name, shape in shapes.items()
    }
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    return ImageReward(
        weights=str(folder / "ImageReward.pt"),
        med_config=str(folder / "med_config.json"),
        tokenizer=str(bert_vocabulary(folder / "bert")),
        vision_heads=4,
    )


def hpsv3(folder: Path) -> HPSv3:
    shapes = json.loads((FIXTURES / "hpsv3_shapes.json").read_text())
    save_file({name: weight(name, tuple(shape)) for name, shape in shapes.items()}, folder / "HPSv3.safetensors")
    return HPSv3(weights=str(folder / "HPSv3.safetensors"), base=str(QWEN), dtype="float32")


def videoalign(folder: Path) -> VideoAlign:
    shapes = json.loads((FIXTURES / "videoalign_shapes.json").read_text())
    (folder / "checkpoint-1").mkdir()
    torch.save({name: weight(name, tuple(shape)) for name, shape in shapes.items()}, folder / "checkpoint-1/model.pth")
    (folder / "model_config.json").write_bytes((FIXTURES / "videoalign_config.json").read_bytes())
    return VideoAlign(weights=str(folder), checkpoint="checkpoint-1", base=str(QWEN), dtype="float32")


def optical_flow(folder: Path) -> OpticalFlow:
    from torchvision.models.optical_flow import raft_small

    torch.save(filled(raft_small().state_dict()), folder / "raft.pth")
    return OpticalFlow(network="raft_small", weights=str(folder / "raft.pth"), updates=1)


def consistency(folder: Path) -> Consistency:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16), add_pooling_layer=False)
    model.load_state_dict(filled(model.state_dict()))
    model.save_pretrained(folder)
    return Consistency(weights=str(folder))


def geneval(folder: Path) -> GenEval:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6,
        id2label=dict(enumerate(OBJECTS)),
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config)
    # Classes that differ from query to query, and of which the model is sure.
    model.load_state_dict({
        name: 40 * weight(name, tuple(value.shape)) if name == "class_predictor.weight" else value
        for name, value in filled(model.state_dict()).items()
    })  # fmt: skip
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    (folder / "clip").mkdir()
    return GenEval(detector=str(folder), clip=str(clip_folder(folder / "clip")))


def ocr(folder: Path) -> OCR:
    return OCR(threads=1)


def soft_tifa(folder: Path) -> SoftTIFA:
    asked = {"two red circles": [["How many circles are in the image?", "two"], ["Are the circles red?", "Yes"]],
             "a green triangle": [["Is the triangle green?", "Yes"]],
             "a red circle": [["Is the circle red?", "Yes"]]}  # fmt: skip
    lines = [json.dumps({"prompt": prompt, "vqa_list": pairs}) for prompt, pairs in asked.items()]
    (folder / "asked.jsonl").write_text("\n".join(lines))
    return SoftTIFA(BrightVlm(), str(folder / "asked.jsonl"))


def scene_graph(folder: Path) -> SceneGraph:
    asked = {"two red circles": [("1", "0", "Are there circles?"), ("2", "1", "Are the circles red?")],
             "a green triangle": [("1", "0", "Is the triangle green?")],
             "a red circle": [("1", "0", "Is the circle red?")]}  # fmt: skip
    lines = ["item_id,text,proposition_id,dependency,question_natural_language"]
    lines += [f"x,{prompt},{','.join(row)}" for prompt, rows in asked.items() for row in rows]
    (folder / "graphs.csv").write_text("\n".join(lines))
    return SceneGraph(BrightVlm(), str(folder / "graphs.csv"))


TINY: dict[str, Callable[[Path], RewardModel]] = {
    "aesthetic": aesthetic, "clip": clip, "consistency": consistency, "geneval": geneval, "hpsv2": hpsv2,
    "hpsv3": hpsv3, "imagereward": imagereward, "ocr": ocr, "optical_flow": optical_flow, "pickscore": pickscore,
    "scene_graph": scene_graph, "soft_tifa": soft_tifa, "videoalign": videoalign,
}  # fmt: skip
"""Reward models that need a checkpoint, by name; each is written into the folder that is given."""


class Shelf:
    """Tiny reward models, each written once a session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, RewardModel] = {}

    def __call__(self, name: str) -> RewardModel:
        if name not in self.made:
            (self.folder / name).mkdir()
            self.made[name] = TINY[name](self.folder / name)
        return self.made[name]
