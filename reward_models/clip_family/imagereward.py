"""ImageReward: what people think of a picture and its prompt, by a BLIP that reads both together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from reward_models.base import KnownAnswer, Media, RewardError, Rewards
from reward_models.clip_family.linear_head import linear_head
from reward_models.clip_family.official import Implementation, OfficialScorer, Package, ScoredEitherWay
from reward_models.loading.inputs import check_media, check_prompts, frames, per_clip, warn_cut
from reward_models.loading.preprocess import centre_crop, normalise, shortest_side
from reward_models.loading.sanity_samples import colours
from reward_models.loading.weights import (
    Dtype,
    Provenance,
    check_complete,
    find_file,
    find_folder,
    load_pretrained,
    read_state,
)

_NAME = "imagereward"
_OFFICIAL = "THUDM/ImageReward/ImageReward.pt"
_PACKAGE = Package(_NAME, "ImageReward", "image-reward", ("tokenizer", "vision_heads", "dtype", "batch_size"))

_SIDE = 224
_TOKENS = 35
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw score over the authors' validation set."""

_UNUSED = r"blip\.(vision_proj|text_proj)\.(weight|bias)|blip\.text_encoder\.embeddings\.position_ids"
"""What the official file holds of BLIP's pretraining, and numbers that follow from the configuration."""

_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"^norm\.", "post_layernorm."),
)
"""Names of the visual encoder, the authors' and transformers'; those of the text encoder are the same in both."""


@dataclass(frozen=True)
class ImageReward(ScoredEitherWay):
    """Score a picture for its prompt, about -2 to 2 with mean 0 and spread 1; a clip gets the mean over its frames.

    The middle square of a picture is looked at, and 35 tokens of the prompt are read.

    Attributes:
        weights: The authors' checkpoint: a file, or "owner/name/file" on the hub.
        revision: Of that repository.
        med_config: The text encoder's configuration, likewise.
        tokenizer: A BERT vocabulary: a folder, or "owner/name" on the hub.
        vision_heads: Attention heads of the picture encoder, which no file records: 16 in the ViT-L of the checkpoint.
        dtype: What the encoders compute in; the head is always float32.
        batch_size: Frames at once.
        implementation: "official" scores through the authors' package `image-reward` (extra `image-reward`): ViT-L in
            float32, one picture at a time, without a gradient.

    Source: ImageReward (arXiv 2304.05977); weights and code under Apache-2.0.
    """

    weights: str = _OFFICIAL
    revision: str | None = None
    med_config: str = "THUDM/ImageReward/med_config.json"
    tokenizer: str = "google-bert/bert-base-uncased"
    vision_heads: int = 16
    dtype: Dtype = "float32"
    batch_size: int = 32
    implementation: Implementation = "native"

    package: ClassVar[Package] = _PACKAGE

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return pictures of one colour with its name, for the official weights alone."""
        return colours() if self.weights == _OFFICIAL else ()

    def load(self, *, device: torch.device) -> ImageRewardScorer | OfficialScorer:
        """Return the scorer.

        Raises:
            RewardError: If a file or a package is missing, damaged, or the checkpoint is not this model's.
        """
        from transformers import AutoTokenizer

        package = _PACKAGE.load() if self.implementation == "official" else None
        file = find_file(_NAME, self.weights, self.revision)
        config = find_file(_NAME, self.med_config, self.revision)
        if package is not None:
            model = package.load(str(file), device=device, med_config=str(config))
            return OfficialScorer(_NAME, partial(_ask, model))
        vocabulary = find_folder(_NAME, self.tokenizer, weights=False)
        try:
            tokenizer = AutoTokenizer.from_pretrained(vocabulary)
        except (OSError, ValueError) as error:
            raise RewardError(f"{_NAME}: {vocabulary} holds no BERT vocabulary: {error}") from error
        state = read_state(_NAME, file)
        parts = {part: _below(f"{part}.", state) for part in ("blip.visual_encoder", "blip.text_encoder", "mlp")}
        used = {f"{part}.{key}" for part, inside in parts.items() for key in inside}
        check_complete(_NAME, (), state.keys() - used, unused=_UNUSED)
        vision = _vision(parts["blip.visual_encoder"], self.vision_heads, self.dtype)
        text = _text(parts["blip.text_encoder"], config, self.dtype)
        head = linear_head(_NAME, parts["mlp"], text.config.hidden_size)
        provenance = Provenance((file, config), f"shorter side {_SIDE}, bicubic, centre crop; {_TOKENS} tokens")
        return ImageRewardScorer(
            vision.to(device), text.to(device), head.to(device), tokenizer, provenance, self.batch_size
        )


def _ask(model: Any, prompt: str, pictures: list[Image]) -> Sequence[float]:
    """Ask the authors' package, which gives a list of one picture no list of scores."""
    return [model.score(prompt, picture) for picture in pictures]


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _shape(state: dict[str, Tensor], key: str) -> torch.Size:
    if key not in state:
        check_complete(_NAME, [key], ())
    return state[key].shape


def _vision(state: dict[str, Tensor], heads: int, dtype: Dtype) -> Any:
    """Return BLIP's visual encoder, whose size follows from the shapes of its weights."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width, _, patch, _ = _shape(state, "patch_embed.proj.weight")
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(state, "blocks.0.mlp.fc1.weight")[0],
        num_hidden_layers=sum(key.endswith(".norm1.weight") for key in state),
        num_attention_heads=heads,
        image_size=_SIDE,
        patch_size=patch,
        layer_norm_eps=1e-6,  # transformers' default is another
    )
    renamed = {}
    for key, value in state.items():
        for old, new in _VISION:
            key = re.sub(old, new, key)
        renamed[key] = value
    return load_pretrained(_NAME, BlipVisionModel.from_pretrained, None, config=config, dtype=dtype, state=renamed)


def _text(state: dict[str, Tensor], file: Path, dtype: Dtype) -> Any:
    """Return BLIP's text encoder, every layer of which also looks at the picture."""
    from transformers import BlipTextConfig, BlipTextModel

    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        given = given if isinstance(given, dict) else {}
        kept = {key: given[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
        heads, words, eps = given["num_attention_heads"], given["vocab_size"], given["layer_norm_eps"]
    except (OSError, ValueError, KeyError) as error:
        raise RewardError(f"{_NAME}: med_config: {file} is not a text encoder's configuration: {error}") from error
    config = BlipTextConfig(
        **kept,
        num_attention_heads=heads,
        vocab_size=words,
        layer_norm_eps=eps,
        encoder_hidden_size=_shape(state, "encoder.layer.0.crossattention.self.key.weight")[1],
        is_decoder=True,  # this is what makes the layers that look at the picture
    )
    load = partial(BlipTextModel.from_pretrained, add_pooling_layer=False)
    positions = r"embeddings\.position_ids"
    return load_pretrained(_NAME, load, None, config=config, dtype=dtype, state=state, unused=positions)


@dataclass(frozen=True)
class ImageRewardScorer:
    """The loaded model."""

    vision: Any
    text: Any
    head: nn.Module
    tokenizer: Any
    provenance: Provenance
    batch_size: int

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels."""
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        warn_cut(_NAME, [len(ids) for ids in self.tokenizer(list(prompts), verbose=False).input_ids], _TOKENS)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
        ).to(self.vision.device)
        rows = torch.arange(len(media)).repeat_interleave(media.pixels.shape[1])
        scores = [
            self._read(pixels, tokens.input_ids[row], tokens.attention_mask[row])
            for pixels, row in zip(frames(media).split(self.batch_size), rows.split(self.batch_size), strict=True)
        ]
        return Rewards(per_clip((torch.cat(scores) - _MEAN) / _STD, media))

    def _read(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the raw score `[N, 1]` of pictures under one row of tokens each."""
        square = centre_crop(shortest_side(pixels.to(self.vision.device), _SIDE), _SIDE, half_up=True)
        picture = self.vision(pixel_values=normalise(square).to(self.vision.dtype)).last_hidden_state
        # Not as a decoder: every token sees every other one.
        read = self.text(ids, attention_mask=mask, encoder_hidden_states=picture, is_decoder=False)
        return self.head(read.last_hidden_state[:, 0].float())
