"""Vision-language models with random weights, built in code and saved as `save_pretrained` writes them.

The same architectures and key layout as the models people use, at a few hundred thousand parameters. Letters are
tokens; the spellings of yes and no are merged into one token each, as in the real vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
SPELLINGS = (" Yes", " No", " yes", " no", "Yes", "No", "yes", "no", "YES", "NO")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GAIN = 4.0
"""Initial matrices are scaled up by this, or every answer would be nearly uniform."""


def tokenizer(also: Sequence[str] = (), **named: str) -> Qwen2Tokenizer:
    """Return a byte-level tokenizer that knows yes and no as words, and others, and tokens by a processor's names."""
    words = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for spelling in (*SPELLINGS, *also):
        letters = spelling.replace(" ", "Ġ")
        for end in range(2, len(letters) + 1):
            pair = (letters[: end - 1], letters[end - 1])
            if pair not in merges:
                merges.append(pair)
                words.append(letters[:end])
    made = Qwen2Tokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=merges,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=named,
    )
    made.add_tokens(list(SPECIAL), special_tokens=True)
    return made


def _text(words: Qwen2Tokenizer, *, three: bool) -> dict[str, object]:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    return {
        "vocab_size": len(words),
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "rope_parameters": rope | ({"mrope_interleaved": True} if three else {}),
        **({"head_dim": 16} if three else {}),
    }


def _tokens(words: Qwen2Tokenizer) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    return {name: words.convert_tokens_to_ids(token) for name, token in names.items()}


def _qwen2(words: Qwen2Tokenizer) -> Qwen2VLForConditionalGeneration:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2}
    config = Qwen2VLConfig(text_config=_text(words, three=False), vision_config=vision, **_tokens(words))
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5(words: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
              "window_size": 56, "fullatt_block_indexes": [1]}  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=_text(words, three=False), vision_config=vision, **_tokens(words))
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen3(words: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
              "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}  # fmt: skip
    config = Qwen3VLConfig(text_config=_text(words, three=True), vision_config=vision, **_tokens(words))
    return Qwen3VLForConditionalGeneration(config)


FAMILIES = {
    "qwen2_vl": (_qwen2, Qwen2VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen2_5_vl": (_qwen2_5, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, 14),
    "qwen3_vl": (_qwen3, Qwen3VLProcessor, Qwen3VLVideoProcessor, 16),
}


def save_tiny_vlm(folder: Path, family: str, seed: int = 0, also: Sequence[str] = ()) -> Path:
    """Write a model of a family and its processor into `folder`; other words than yes and no may be tokens, `also`."""
    build, processor_class, video_class, patch = FAMILIES[family]
    words = tokenizer(also)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(words)
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data *= GAIN
    area = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}
    video_pad = "<|video_pad|>" if family == "qwen3_vl" else "<|vision_start|><|video_pad|><|vision_end|>"
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(patch_size=patch, size=area),
        tokenizer=words,
        video_processor=video_class(patch_size=patch, size={**area, "longest_edge": 8 * area["longest_edge"]}),
        chat_template=TEMPLATE.replace("VIDEO", video_pad),
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
