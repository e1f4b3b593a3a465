"""VideoAlign's VideoReward: visual quality, motion quality and text alignment of clips, by Qwen2-VL-2B."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.loading.inputs import check_media, check_prompts
from reward_models.loading.preprocess import resize_bytes
from reward_models.loading.weights import Dtype, Provenance, find_file, read_state
from reward_models.vlm_rewards.qwen2vl import FACTOR, Qwen2VLCheckpoint, Qwen2VLReader, fitted_size, load_reader, merged

_NAME = "videoalign"

Dimension = Literal["VQ", "MQ", "TA"]
_DIMENSIONS: tuple[Dimension, ...] = ("VQ", "MQ", "TA")

_FEWEST_PIXELS = 128 * FACTOR * FACTOR
_PAIR = 2
"""Frames that Qwen2-VL takes together."""
_FEWEST_FRAMES, _MOST_FRAMES = 4, 768


@dataclass(frozen=True)
class VideoAlign(RewardModel):
    """Score the sum of visual quality (VQ), motion quality (MQ) and text alignment (TA), each with mean 0 and spread 1.

    The three are the parts of the result. Two frames per second are looked at, of about 200,000 pixels each.

    Attributes:
        weights: The authors' folder, with `model_config.json`, or "owner/name" on the hub.
        revision: Of the hub's repository.
        checkpoint: Folder in there that holds `model.pth`.
        base: Configuration and vocabulary of Qwen2-VL; null takes what `model_config.json` names.
        dimensions: Which of "VQ", "MQ", "TA" are added up.
        dtype: What the body computes in; the head is always float32.
        batch_size: Clips at once.

    Source: VideoAlign (arXiv 2501.13918); code under MIT, weights under Apache-2.0.
    """

    weights: str = "KlingTeam/VideoReward"
    revision: str | None = None
    checkpoint: str = "checkpoint-11352"
    base: str | None = None
    dimensions: tuple[Dimension, ...] = _DIMENSIONS
    dtype: Dtype = "bfloat16"
    batch_size: int = 2

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.dimensions or set(self.dimensions) - set(_DIMENSIONS):
            raise RewardError(f"{_NAME}: dimensions are some of {', '.join(_DIMENSIONS)}, got {self.dimensions}")

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse empty and endless prompts."""
        check_prompts(_NAME, prompts)

    def load(self, *, device: torch.device) -> VideoAlignScorer:
        """Return the scorer.

        Raises:
            RewardError: If a file is missing, damaged, or the checkpoint is not this model's.
        """
        config = find_file(_NAME, f"{self.weights}/model_config.json", self.revision)
        file = find_file(_NAME, f"{self.weights}/{self.checkpoint}/model.pth", self.revision)
        settings = _settings(config)
        state = merged(_NAME, read_state(_NAME, file), scale=settings.scale)
        marks = tuple(f"<|{dimension}_reward|>" for dimension in _DIMENSIONS)
        what = Qwen2VLCheckpoint(_NAME, self.base or settings.base, marks, clips=True, dtype=self.dtype)
        state = {key.replace("rm_head.weight", "rm_head.0.weight"): value for key, value in state.items()}
        if "rm_head.0.weight" not in state:
            raise RewardError(f"{_NAME}: {file} has no rm_head.weight: it is of another architecture than VideoAlign")
        numbers, width = state["rm_head.0.weight"].shape
        with torch.device("meta"):
            head = nn.Sequential(nn.Linear(width, numbers, bias=False))
        reader = load_reader(what, state, head=head, files=(config, file), device=device)
        return VideoAlignScorer(reader, settings, self.dimensions, self.batch_size)


@dataclass(frozen=True)
class _Settings:
    """What `model_config.json` says.

    Attributes:
        base: The Qwen2-VL it was made of.
        scale: Of the adapters.
        rate: Frames per second that are looked at.
        most: Pixels per frame, at most.
        norms: (mean, spread) of each dimension's raw score.
    """

    base: str
    scale: float
    rate: float
    most: int
    norms: tuple[tuple[float, float], ...]


def _settings(file: Path) -> _Settings:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _no_settings(file, error) from error
    try:
        lora, data, model = settings["peft_lora_config"], settings["data_config"], settings["model_config"]
        power = 0.5 if lora.get("use_rslora") else 1.0
        norms = dict(settings["inference_config"] or {}) if "inference_config" in settings else {}
        return _Settings(
            base=model["model_name_or_path"],
            scale=lora["lora_alpha"] / lora["lora_r"] ** power,
            rate=float(data["fps"]),
            most=int(data["max_frame_pixels"]),
            norms=tuple((norms.get(f"{name}_mean", 0.0), norms.get(f"{name}_std", 1.0)) for name in _DIMENSIONS),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _no_settings(file, error) from error


def _no_settings(file: Path, error: Exception) -> RewardError:
    return RewardError(f"{_NAME}: {file} is not VideoAlign's model_config.json: {error!r}")


@dataclass(frozen=True)
class VideoAlignScorer:
    """The loaded model."""

    reader: Qwen2VLReader
    settings: _Settings
    dimensions: tuple[Dimension, ...]
    batch_size: int

    @property
    def provenance(self) -> Provenance:
        """What it was loaded from."""
        return self.reader.provenance

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score clips; gradients reach the frames that are looked at.

        Raises:
            RewardError: If these are pictures, or the frame rate of the clips is not known.
        """
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        clips = media.pixels[:, self._chosen(media)].float()
        chunks = range(0, len(clips), self.batch_size)
        read = [self._read(clips[i : i + self.batch_size], prompts[i : i + self.batch_size]) for i in chunks]
        raw = torch.cat(read).to(media.pixels.device)
        parts = {
            name: (raw[:, i] - mean) / spread
            for i, (name, (mean, spread)) in enumerate(zip(_DIMENSIONS, self.settings.norms, strict=True))
        }
        value = torch.stack([parts[name] for name in self.dimensions]).sum(0)
        return Rewards(value, {name: part.detach() for name, part in parts.items()})

    def _read(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the raw scores `[B, 3]`; a head with three outputs gives each dimension at its own token."""
        fitted = [self._fitted(clip.to(self.reader.body.device)) for clip in clips]
        read = self.reader(fitted, prompts)
        return read[:, :, 0] if read.shape[2] == 1 else read.diagonal(dim1=1, dim2=2)

    def _fitted(self, clip: Tensor) -> Tensor:
        return resize_bytes(clip, *fitted_size(_NAME, clip, fewest=_FEWEST_PIXELS, most=self.settings.most))

    def _chosen(self, media: Media) -> Tensor:
        """Return which frames are looked at: an even number, evenly spaced, the first and the last among them."""
        total = media.pixels.shape[1]
        if total < _PAIR:
            raise RewardError(f"{_NAME} scores clips of at least {_PAIR} frames, got pictures")
        if media.fps is None:
            raise RewardError(f"{_NAME} needs the frames per second of a clip, and the media have none: give fps")
        most = min(_MOST_FRAMES, total) // _PAIR * _PAIR
        count = min(max(total / media.fps * self.settings.rate, _FEWEST_FRAMES), most)
        return torch.linspace(0, total - 1, round(count / _PAIR) * _PAIR).round().long()
