"""Human Preference Score v3: which picture people prefer for a prompt, by Qwen2-VL-7B trained on their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards
from reward_models.loading.inputs import check_media, check_prompts, frames, per_clip
from reward_models.loading.preprocess import resize
from reward_models.loading.sanity_samples import colours
from reward_models.loading.weights import Dtype, Provenance, find_file, read_state
from reward_models.vlm_rewards.qwen2vl import FACTOR, Qwen2VLCheckpoint, Qwen2VLReader, fitted_size, load_reader

_NAME = "hpsv3"
_OFFICIAL = "MizzenAI/HPSv3/HPSv3.safetensors"
_PIXELS = 256 * FACTOR * FACTOR


@dataclass(frozen=True)
class HPSv3(RewardModel):
    """Score the mean of the preference that the model reads, without fixed bounds; a clip gets the mean over frames.

    The part "sigma" is how unsure the model is: the standard deviation of its preference, in units of the score. The
    head gives its logarithm, as the authors' loss takes it. A clip gets the mean over its frames.

    Attributes:
        weights: The authors' checkpoint: a file, or "owner/name/file" on the hub (16.5 GB).
        revision: Of the hub's repository.
        base: Configuration and vocabulary of Qwen2-VL: a folder, or "owner/name" on the hub.
        dtype: What the body computes in; the head is always float32. bfloat16 halves the memory and moves scores: by
            5e-3 with the tiny weights of our tests, 15 % of their spread.
        batch_size: Frames at once.

    Source: HPSv3 (arXiv 2508.03789); code under MIT, base under Apache-2.0. Where its package resizes for gradients it
        takes bilinear without antialiasing, which it was not trained on; we take the same bicubic everywhere.
    """

    weights: str = _OFFICIAL
    revision: str | None = None
    base: str = "Qwen/Qwen2-VL-7B-Instruct"
    dtype: Dtype = "bfloat16"
    batch_size: int = 4

    differentiable: ClassVar[bool] = True

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse empty and endless prompts."""
        check_prompts(_NAME, prompts)

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return pictures of one colour with its name, for the official weights alone."""
        return colours() if self.weights == _OFFICIAL else ()

    def load(self, *, device: torch.device) -> HPSv3Scorer:
        """Return the scorer.

        Raises:
            RewardError: If a file is missing, damaged, or the checkpoint is not this model's.
        """
        file = find_file(_NAME, self.weights, self.revision)
        what = Qwen2VLCheckpoint(_NAME, self.base, ("<|Reward|>",), clips=False, dtype=self.dtype)
        state = read_state(_NAME, file)
        if "rm_head.0.weight" not in state:
            raise RewardError(f"{_NAME}: {file} has no rm_head.0.weight: it is of another architecture than HPSv3")
        width = state["rm_head.0.weight"].shape[1]
        with torch.device("meta"):
            head = nn.Sequential(
                nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
            )
        return HPSv3Scorer(load_reader(what, state, head=head, files=(file,), device=device), self.batch_size)


@dataclass(frozen=True)
class HPSv3Scorer:
    """The loaded model."""

    reader: Qwen2VLReader
    batch_size: int

    @property
    def provenance(self) -> Provenance:
        """What it was loaded from."""
        return self.reader.provenance

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels."""
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        texts = [prompt for prompt in prompts for _ in range(media.pixels.shape[1])]
        pictures = frames(media)
        chunks = range(0, len(pictures), self.batch_size)
        read = [self._read(pictures[i : i + self.batch_size], texts[i : i + self.batch_size]) for i in chunks]
        mean, log_sigma = torch.cat(read).unbind(1)
        return Rewards(per_clip(mean, media), {"sigma": per_clip(log_sigma.detach().exp(), media)})

    def _read(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        size = fitted_size(_NAME, pictures, fewest=_PIXELS, most=_PIXELS)
        resized = resize(pictures.to(self.reader.body.device), *size)
        return self.reader(list(resized[:, None]), texts)[:, 0]
