"""CLIP's two towers, from transformers or from open_clip: pictures and texts as unit vectors of one space.

Several rewards are a cosine in such a space, or a small network on top of its picture vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from reward_models.base import Media, RewardError, Rewards, Size
from reward_models.loading.extras import extra
from reward_models.loading.inputs import check_media, check_prompts, frames, per_clip, warn_cut
from reward_models.loading.preprocess import centre_crop, longest_side_padded, normalise, shortest_side
from reward_models.loading.weights import (
    Dtype,
    Provenance,
    fill,
    find_file,
    find_folder,
    load_pretrained,
    read_state,
    torch_dtype,
)

_VIT_H_WEIGHTS = 986e6
"""Parameters of CLIP ViT-H/14, both towers."""

_VIT_H_FLOPS = 0.38e12
"""Of one picture of 224 pixels and one text of 77 tokens, two a weight and token: 632 M x 257 and 302 M x 77."""

_BICUBIC = 3
"""PIL's number of the filter, as preprocessing files write it."""

_OLD_BUFFERS = r"(text_model|vision_model)\.embeddings\.position_ids"
"""Numbers that old checkpoints carry and that follow from the configuration."""


def vit_h(dtype: Dtype) -> Size:
    """Return the size of CLIP ViT-H/14."""
    return Size(_VIT_H_WEIGHTS * torch_dtype(dtype).itemsize, _VIT_H_FLOPS)


class Towers(Protocol):
    """A loaded CLIP model."""

    @property
    def name(self) -> str:
        """Who loaded it, for messages."""
        ...

    @property
    def scale(self) -> float:
        """Learned factor of the cosine, about 100."""
        ...

    @property
    def width(self) -> int:
        """Length of the vectors."""
        ...

    @property
    def provenance(self) -> Provenance:
        """What it was loaded from."""
        ...

    def pictures(self, pixels: Tensor) -> Tensor:
        """Return unit vectors `[N, D]` float32 of pictures `[N, 3, H, W]` in [0, 1], with their gradient."""
        ...

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors `[N, D]` float32."""
        ...


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Return `function` of `rows`, at most `size` of them at once."""
    return torch.cat([function(chunk) for chunk in rows.split(size)])


def cosines(towers: Towers, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return the cosine of each frame with the prompt of its clip.

    Args:
        towers: The model.
        pictures: `[B * F, D]` unit vectors.
        prompts: B texts; each is encoded once however often it occurs.
    """
    different = list(dict.fromkeys(prompts))
    rows = torch.tensor([different.index(prompt) for prompt in prompts], device=pictures.device)
    texts = towers.texts(different)[rows].to(pictures.device)
    return (pictures * texts.repeat_interleave(len(pictures) // len(prompts), dim=0)).sum(1)


@dataclass(frozen=True)
class CosineScorer:
    """A loaded reward that is the cosine of picture and prompt.

    Attributes:
        towers: The model.
        scale: What the cosine is multiplied with.
        batch_size: Frames at once.
    """

    towers: Towers
    scale: float
    batch_size: int

    @property
    def provenance(self) -> Provenance:
        """What it was loaded from."""
        return self.towers.provenance

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`, a clip by the mean over its frames; gradients reach its pixels."""
        check_media(self.towers.name, media, prompts)
        check_prompts(self.towers.name, prompts)
        pictures = in_chunks(self.towers.pictures, frames(media), self.batch_size)
        return Rewards(per_clip(self.scale * cosines(self.towers, pictures, prompts), media))


@dataclass(frozen=True)
class HubClip:
    """Towers of a transformers checkpoint, preprocessed as its own files describe."""

    name: str
    model: Any
    tokenizer: Any
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: Provenance

    @property
    def scale(self) -> float:
        """The learned factor."""
        return self.model.logit_scale.float().exp().item()

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return self.model.config.projection_dim

    def pictures(self, pixels: Tensor) -> Tensor:
        """Return unit vectors of pictures."""
        weight = self.model.visual_projection.weight
        square = centre_crop(shortest_side(pixels.to(weight.device), self.side), self.side)
        ready = normalise(square, self.mean, self.std)
        # Not `get_image_features`: what that returns differs between transformers 4 and 5.
        pooled = self.model.vision_model(pixel_values=ready.to(weight)).pooler_output
        return normalize(self.model.visual_projection(pooled).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts; what is beyond the encoder's length is cut, with a warning."""
        longest = self.model.config.text_config.max_position_embeddings
        warn_cut(self.name, [len(ids) for ids in self.tokenizer(list(prompts), verbose=False).input_ids], longest)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.model.visual_projection.weight.device)
        pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return normalize(self.model.text_projection(pooled).float(), dim=-1)


def load_hub_clip(
    name: str, weights: Path, *, processor: Path, device: torch.device, dtype: Dtype = "float32"
) -> HubClip:
    """Load a checkpoint in transformers' layout.

    Args:
        name: Who loads, for messages.
        weights: Folder of the model.
        processor: Folder of the tokenizer and of the preprocessing.
        device: Where it runs.
        dtype: What it computes in.

    Raises:
        RewardError: If this is not a CLIP model, or its preprocessing is not the one CLIP models have.
    """
    from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, CLIPModel

    try:
        config = AutoConfig.from_pretrained(weights)
        pictures = CLIPImageProcessor.from_pretrained(processor)
        tokenizer = AutoTokenizer.from_pretrained(processor)
    except (OSError, ValueError, TypeError) as error:
        raise RewardError(
            f"{name}: no CLIP model in {' and '.join(dict.fromkeys(map(str, (weights, processor))))}: {error}"
        ) from error
    if config.model_type != "clip":
        raise RewardError(f"{name}: {weights} holds a model of type {config.model_type!r}, expected 'clip'")
    side, crop = pictures.size["shortest_edge"], pictures.crop_size["height"]
    if side != crop or pictures.resample != _BICUBIC:
        raise RewardError(
            f"{name}: {processor} asks for another preprocessing than CLIP's: shorter side {side}, crop {crop}, "
            f"filter {pictures.resample}; expected one size and bicubic ({_BICUBIC})"
        )
    load = CLIPModel.from_pretrained
    model = load_pretrained(name, load, weights, config=config, dtype=dtype, unused=_OLD_BUFFERS).to(device)
    files = tuple(sorted([*weights.glob("*.safetensors")] or [*weights.glob("*.bin")]))
    preprocessing = f"shorter side {side}, bicubic, centre crop, {pictures.image_mean}, {pictures.image_std}"
    mean, std = tuple(pictures.image_mean), tuple(pictures.image_std)
    return HubClip(name, model, tokenizer, side, mean, std, Provenance(files, preprocessing))


@dataclass(frozen=True)
class OpenClip:
    """Towers in open_clip's architecture and names.

    Attributes:
        padded: Whether pictures are padded to squares, as HPSv2 does, rather than cropped.
        antialias: Whether shrinking averages; only where pictures are padded.
    """

    name: str
    model: Any
    tokenizer: Any
    side: int
    provenance: Provenance
    padded: bool = False
    antialias: bool = True

    @property
    def scale(self) -> float:
        """The learned factor."""
        return self.model.logit_scale.float().exp().item()

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return self.model.text_projection.shape[1]

    def pictures(self, pixels: Tensor) -> Tensor:
        """Return unit vectors of pictures."""
        pixels = pixels.to(self.model.text_projection.device)
        if self.padded:
            square = longest_side_padded(pixels, self.side, antialias=self.antialias)
        else:
            square = centre_crop(shortest_side(pixels, self.side), self.side, half_up=True)
        return normalize(self.model.encode_image(normalise(square).to(self.model.text_projection)).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts; what is beyond the encoder's length is cut, with a warning."""
        longest = self.model.context_length
        ends = 2  # the first and the last token say where the text begins and ends
        warn_cut(self.name, [len(self.tokenizer.encode(prompt)) + ends for prompt in prompts], longest)
        tokens = self.tokenizer(list(prompts), context_length=longest)
        return normalize(self.model.encode_text(tokens.to(self.model.text_projection.device)).float(), dim=-1)


def load_open_clip(
    name: str, file: Path, *, architecture: str, device: torch.device, dtype: Dtype = "float32", padded: bool = False,
    antialias: bool = True,
) -> OpenClip:  # fmt: skip
    """Load a checkpoint with open_clip's names.

    Args:
        name: Who loads, for messages.
        file: The weights.
        architecture: A name that open_clip knows, such as "ViT-H-14", or a JSON file like those it ships.
        device: Where it runs.
        dtype: What it computes in.
        padded: How pictures become square; see `OpenClip`.
        antialias: See `OpenClip`.

    Raises:
        RewardError: If open_clip is not installed, or the checkpoint is of another architecture.
    """
    open_clip = extra(name, "open_clip", "open-clip")
    config = _architecture(name, open_clip, architecture)
    try:
        with torch.device("meta"):
            model = open_clip.CLIP(**config)
    except (TypeError, KeyError) as error:
        raise RewardError(f"{name}: {architecture} is not a plain CLIP architecture of open_clip: {error}") from error
    fill(name, model, read_state(name, file))
    if model.attn_mask is not None:  # the one buffer that checkpoints leave out
        length = model.context_length
        model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    model.requires_grad_(False).eval().to(device, torch_dtype(dtype))
    side = config["vision_cfg"]["image_size"]
    fit = f"longer side {side}, padded, antialias {antialias}" if padded else f"shorter side {side}, centre crop"
    provenance = Provenance((file,), f"{architecture}, {fit}, bicubic")
    return OpenClip(name, model, open_clip.SimpleTokenizer(), side, provenance, padded, antialias)


def _architecture(name: str, open_clip: Any, architecture: str) -> dict[str, Any]:
    if Path(architecture).suffix == ".json":
        import json

        try:
            config = json.loads(Path(architecture).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RewardError(f"{name}: architecture {architecture} cannot be read: {error}") from error
    else:
        config = open_clip.get_model_config(architecture)
    if not isinstance(config, dict) or {"embed_dim", "vision_cfg", "text_cfg"} - config.keys():
        raise RewardError(f"{name}: open_clip knows no architecture {architecture!r}; see open_clip.list_models()")
    return config


def load_towers(
    name: str, weights: str, *, revision: str | None, architecture: str | None, device: torch.device, dtype: Dtype
) -> HubClip | OpenClip:
    """Load either kind: with an architecture from a file for open_clip, without from a folder for transformers.

    Raises:
        RewardError: If it cannot be loaded.
    """
    if architecture is None:
        folder = find_folder(name, weights, revision)
        return load_hub_clip(name, folder, processor=folder, device=device, dtype=dtype)
    file = find_file(name, weights, revision)
    return load_open_clip(name, file, architecture=architecture, device=device, dtype=dtype)
