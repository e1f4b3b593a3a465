"""Vision-language models of three families that are no Qwen, random weights, saved as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.support.tiny_vlms import GAIN, TEMPLATE, tokenizer

SIDE, PATCH = 56, 14
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _text(words: Any) -> dict[str, Any]:
    ends = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return {**SMALL, **ends, "vocab_size": len(words), "num_key_value_heads": 2}


def _llava() -> tuple[Any, Any]:
    words = tokenizer()
    words.add_tokens(["<image>"], special_tokens=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SMALL, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**_text(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE),
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace(IMAGE, "<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**SMALL, image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        text_config=Qwen2Config(**_text(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        downsample_ratio=0.5,
    )
    square = {"height": SIDE, "width": SIDE}
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=square, crop_to_patches=False),
        video_processor=InternVLVideoProcessor(size=square),
        tokenizer=words,
        image_seq_length=4,
        chat_template=TEMPLATE.replace(IMAGE, "<IMG_CONTEXT>\n"),
    )
    return InternVLForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**SMALL, image_size=SIDE, patch_size=PATCH),
        text_config=Gemma3TextConfig(**_text(words), head_dim=16),
        image_token_id=words.image_token_id,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        mm_tokens_per_image=4,
    )
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.02)  # zeros otherwise
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        tokenizer=words,
        image_seq_length=4,
        chat_template=TEMPLATE.replace(IMAGE, "<start_of_image>"),
    )
    return model, processor


OTHERS = {"llava": _llava, "internvl": _internvl, "gemma3": _gemma3}


def save_other_vlm(folder: Path, family: str, seed: int = 0) -> Path:
    """Write a model of a family and its processor into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = OTHERS[family]()
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data *= GAIN
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
