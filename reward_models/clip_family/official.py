"""Scores through the packages of a model's authors, for those who want their numbers to the last digit."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from PIL.Image import Image
from torchvision.transforms.functional import to_pil_image

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.foreign import ForeignCode
from reward_models.loading.inputs import check_media, check_prompts, frames, per_clip
from reward_models.loading.preprocess import eight_bit

Implementation = Literal["native", "official"]
"""Whose code scores: the port in this package, or the authors' own package."""

Read = Callable[[str, list[Image]], Sequence[float]]
"""Scores of pictures under one prompt."""


@dataclass(frozen=True)
class Package:
    """A package of authors.

    Attributes:
        reward: The type of reward that asks for it.
        module: What is imported of it.
        extra: The extra of visalign that installs it.
        unread: Fields of the reward that it knows nothing of.
    """

    reward: str
    module: str
    extra: str
    unread: tuple[str, ...]

    def check(self, model: object) -> None:
        """Refuse a description that the package cannot follow, before anything is loaded.

        Args:
            model: The description, a dataclass whose fields all have defaults.

        Raises:
            RewardError: If it is not installed, or such a field was set.
        """
        plain = type(model)()
        if changed := [name for name in self.unread if vars(model)[name] != vars(plain)[name]]:
            raise RewardError(
                f"{self.reward}: {', '.join(changed)} is for implementation: native; the package {self.extra} decides "
                "that by itself. Leave it out"
            )
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            raise self._missing("it is not installed")

    def load(self) -> Any:
        """Import it and return the module.

        Raises:
            RewardError: If that fails.
        """
        with ForeignCode(self._missing), warnings.catch_warnings():  # hpsv2 silences every warning of the process
            return importlib.import_module(self.module)

    def _missing(self, error: object) -> RewardError:
        return RewardError(
            f"{self.reward}: implementation: official needs the package {self.extra}, which cannot be imported "
            f"({error}); install it: pip install 'visalign[{self.extra}]'. Where its versions and the trainer's clash, "
            f"serve it from an environment of its own: visalign serve-reward {self.reward} implementation=official "
            "(docs/reward_server.md)"
        )


class ScoredEitherWay(RewardModel):
    """A reward that is scored by a port in this package, or by the package of its authors.

    Attributes:
        package: Theirs.
        implementation: Which of the two.
    """

    package: ClassVar[Package]
    implementation: Implementation

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether a gradient reaches the pixels; the authors' package gives none."""
        return self.implementation == "native"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse empty and endless prompts, and a package that is asked for and cannot do it."""
        if self.implementation == "official":
            self.package.check(self)
        check_prompts(self.package.reward, prompts)


@dataclass(frozen=True)
class OfficialScorer:
    """A model in its authors' package.

    Attributes:
        name: The type of reward, for messages.
        read: Asks the package.
    """

    name: str
    read: Read

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`, a clip by the mean over its frames; no gradient reaches its pixels."""
        check_media(self.name, media, prompts)
        check_prompts(self.name, prompts)
        levels = (eight_bit(frames(media).detach()) * 255).round().byte().cpu()
        pictures = [to_pil_image(one) for one in levels]
        each = media.pixels.shape[1]
        scores = torch.zeros(len(pictures))
        for prompt in dict.fromkeys(prompts):
            rows = [row * each + frame for row, text in enumerate(prompts) if text == prompt for frame in range(each)]
            given = [float(score) for score in self.read(prompt, [pictures[row] for row in rows])]
            if len(given) != len(rows):
                raise RewardError(f"{self.name}: the package gave {len(given)} scores for {len(rows)} pictures")
            scores[rows] = torch.tensor(given)
        return Rewards(per_clip(scores, media))
