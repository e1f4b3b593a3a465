"""Does the picture show the text its prompt asks for? Read by RapidOCR, whose models come with its package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards
from reward_models.loading.extras import extra
from reward_models.loading.inputs import check_media, check_prompts, frames, per_clip

_NAME = "ocr"
_QUOTED = re.compile(r'["“”„«](.*?)["“”„»]', re.DOTALL)


@dataclass(frozen=True)
class OCR(RewardModel):
    """Score 1 - min(d, n) / n, in [0, 1], for the n letters between the first pair of double quotes of the prompt.

    d is the edit distance to everything that can be read in the picture; it is 0 where the text occurs in it. Spaces
    and case do not count. A clip gets the mean over its frames.

    Attributes:
        longest_side: Larger pictures are shrunk to this before text is looked for.
        threads: Of the recogniser; null leaves it the choice.

    Source: the text-rendering task of Flow-GRPO (arXiv 2505.05470), which reads with PaddleOCR, and gives 0 to prompts
        without quotes and to pictures its reader fails on; we refuse the former, and let the latter fail.
    """

    longest_side: int = 960
    threads: int | None = None

    differentiable: ClassVar[bool] = False

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that quote nothing."""
        check_prompts(_NAME, prompts)
        for prompt in prompts:
            wanted(prompt)

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return a picture of a word, and a blank one."""
        sign = Image.new("RGB", (320, 96), "white")
        ImageDraw.Draw(sign).text((20, 20), "ALIGN", font=ImageFont.load_default(48), fill="black")
        page = torch.from_numpy(np.asarray(sign).copy()).permute(2, 0, 1)[None] / 255
        media = Media(torch.stack([page, torch.ones_like(page)]))
        prompts = ('a sign that says "ALIGN"',) * 2
        return (KnownAnswer("a word is read, and none on a blank page", media, prompts, ((0.8, 1.0), (0.0, 0.0))),)

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def load(self, *, device: torch.device) -> _OCRScorer:
        """Return the scorer; it reads on the CPU whatever the device is.

        Raises:
            RewardError: If the package is not installed.
        """
        settings: dict[str, Any] = {
            "Global.log_level": "critical",
            "Det.limit_type": "max",
            "Det.limit_side_len": self.longest_side,
        }
        if self.threads is not None:
            settings["EngineConfig.onnxruntime.intra_op_num_threads"] = self.threads
        extra(_NAME, "onnxruntime", "ocr")
        return _OCRScorer(extra(_NAME, "rapidocr", "ocr").RapidOCR(params=settings))


@dataclass(frozen=True)
class _OCRScorer:
    engine: Any

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`.

        Raises:
            RewardError: If a prompt quotes no text.
        """
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        levels = (frames(media).detach() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        texts = [wanted(prompt) for prompt in prompts for _ in range(media.pixels.shape[1])]
        scores = [_likeness(text, self._read(page)) for text, page in zip(texts, levels, strict=True)]
        return Rewards(per_clip(torch.tensor(scores), media))

    def _read(self, page: np.ndarray) -> str:
        """Return everything that can be read, line after line."""
        return _letters("".join(self.engine(page[:, :, ::-1]).txts or ()))  # it takes blue first


def wanted(prompt: str) -> str:
    """Return the letters that a prompt asks for.

    Raises:
        RewardError: If nothing stands between double quotes.
    """
    quoted = _QUOTED.search(prompt)
    if quoted is None or not _letters(quoted[1]):
        raise RewardError(
            f"{_NAME}: the text that a picture should show stands in double quotes, as in "
            f"'a sign that says \"OPEN\"'; got {prompt!r:.80}"
        )
    return _letters(quoted[1])


def _letters(text: str) -> str:
    return "".join(text.lower().split())


def _likeness(target: str, read: str) -> float:
    if target in read:
        return 1.0
    return 1 - min(edit_distance(target, read), len(target)) / len(target)


def edit_distance(one: str, other: str) -> int:
    """Return how many letters have to be put in, taken out or changed (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, another in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != another))
    return row[-1]
