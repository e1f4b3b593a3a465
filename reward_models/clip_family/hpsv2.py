"""Human Preference Score v2 and v2.1: which picture people prefer for a prompt, by a CLIP trained on their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image

from reward_models.base import KnownAnswer, Size
from reward_models.clip_family.official import Implementation, OfficialScorer, Package, ScoredEitherWay
from reward_models.clip_family.towers import CosineScorer, load_open_clip, vit_h
from reward_models.loading.sanity_samples import colours
from reward_models.loading.weights import Dtype, find_file

_NAME = "hpsv2"
_OFFICIAL = "xswu/HPSv2/HPS_v2.1_compressed.pt"
_PACKAGE = Package(_NAME, "hpsv2.img_score", "hpsv2", ("architecture", "antialias", "dtype", "batch_size"))


@dataclass(frozen=True)
class HPSv2(ScoredEitherWay):
    """Score the cosine of picture and prompt, about 0.2 to 0.35; a clip gets the mean over its frames.

    Published tables multiply by 100. A picture is padded with black to a square, never cropped. 77 tokens are read.

    Attributes:
        weights: Checkpoint with open_clip's names: a file, or "owner/name/file" on the hub. v2.1 by default; v2.0 is
            "xswu/HPSv2/HPS_v2_compressed.pt".
        revision: Of the hub's repository.
        architecture: A name that open_clip knows, or a JSON file in its form.
        antialias: Average when shrinking. False reproduces numbers made with torchvision before 0.17.
        dtype: What the network computes in.
        batch_size: Frames at once.
        implementation: "official" scores through the authors' package `hpsv2` (extra `hpsv2`): ViT-H-14 in mixed
            precision, one picture at a time, on the first GPU if there is one, without a gradient.

    Source: HPSv2 (arXiv 2306.09341); weights and code under Apache-2.0.
    """

    weights: str = _OFFICIAL
    revision: str | None = None
    architecture: str = "ViT-H-14"
    antialias: bool = True
    dtype: Dtype = "float32"
    batch_size: int = 32
    implementation: Implementation = "native"

    package: ClassVar[Package] = _PACKAGE

    def size(self) -> Size | None:
        """Return that of the official model."""
        return vit_h(self.dtype) if self.weights == _OFFICIAL else None

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return pictures of one colour with its name, for the official weights alone."""
        return colours() if self.weights == _OFFICIAL else ()

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def load(self, *, device: torch.device) -> CosineScorer | OfficialScorer:
        """Return the scorer.

        Raises:
            RewardError: If the checkpoint or a package is missing, or the checkpoint is not this model's.
        """
        if self.implementation == "official":
            package = _PACKAGE.load()
            return OfficialScorer(_NAME, partial(_read, package, find_file(_NAME, self.weights, self.revision)))
        file = find_file(_NAME, self.weights, self.revision)
        towers = load_open_clip(
            _NAME, file, architecture=self.architecture, device=device, dtype=self.dtype, padded=True,
            antialias=self.antialias,
        )  # fmt: skip
        return CosineScorer(towers, 1.0, self.batch_size)


def _read(package: Any, file: Path, prompt: str, pictures: list[Image]) -> Sequence[float]:
    """Ask the authors' package, which reads the checkpoint anew for every prompt."""
    return package.score(pictures, prompt, cp=str(file))
