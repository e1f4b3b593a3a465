"""A tiny Qwen2-VL that knows the words of the caption language: tokenizer, processor, network with random weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from examples.tiny_pipeline.word_tokenizers import learn_merges
from reward_models.verifiers.scenes import SIDE, WORDS
from reward_models.vlm_rewards.questions import Task
from reward_models.vlms.base import CUE

PATCH = 8
HIDDEN, LAYERS, HEAD = 96, 3, 32
FRAMES = 8
NAME_IT, CHECK_IT = "What is it?", "Which of these is it?"
_PHRASES = (NAME_IT, CHECK_IT, CUE, "The text: The result: Number 1 2 yes Yes YES no No NO Answer Judge by Is Are user")
_SPECIAL = {
    "pad": "<|endoftext|>",
    "turn": "<|im_start|>",
    "eos": "<|im_end|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% else %}<|vision_start|><|{{ c['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Qwen2Tokenizer:
    """Return a byte-level tokenizer with one token for each word of captions and of a judge's question."""
    task = Task()
    phrases = (*_PHRASES, task.instruction, *task.criteria, task.alone, task.against)
    words = sorted({*WORDS, *(word for phrase in phrases for word in re.findall(r"[A-Za-z]+", phrase))})
    merges = learn_merges(list(word) for word in sorted([*words, *("Ġ" + word for word in words)]))
    tokens = dict.fromkeys([*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges)])
    made = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        pad_token=_SPECIAL["pad"],
        eos_token=_SPECIAL["eos"],
    )
    made.add_tokens(list(_SPECIAL.values()), special_tokens=True)
    return made


def processor() -> Qwen2VLProcessor:
    """Return the processor: a picture is 16 patches of 8 x 8 pixels, seen as 4 tokens."""
    area = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    even = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=PATCH, size=area, **even),
        video_processor=Qwen2VLVideoProcessor(
            patch_size=PATCH, size={**area, "longest_edge": FRAMES * SIDE**2}, **even
        ),
        tokenizer=tokenizer(),
        chat_template=_TEMPLATE,
    )


def network(words: Any, seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """Return the network, 0.6 million parameters."""
    named = {name: words.convert_tokens_to_ids(token) for name, token in _SPECIAL.items() if name.endswith("_id")}
    text = {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD,
        "num_key_value_heads": HIDDEN // HEAD,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4},
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": HIDDEN, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **named)
        )
