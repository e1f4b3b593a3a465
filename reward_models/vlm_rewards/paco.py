"""Do the pictures of a sample belong together? Pairwise consistency, as PaCo-RL asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.vlm_rewards.questions import check_prompt, clips_of
from reward_models.vlms.base import NO, YES, Question, Reader, Vlm, plain

_ANSWER = f"Answer {YES} or {NO}."
_FPS = 1.0  # of a picture; nothing reads it


@dataclass(frozen=True)
class Paco(RewardModel):
    """Score how surely a vision-language model answers that pictures are consistent: p(yes) / (p(yes) + p(no)).

    A sample made from a source (an edit) is compared with it, and asked whether it follows its prompt: the score is the
    geometric mean of both answers, which are the parts "consistent" and "follows". Any other sample is cut into its
    frames, and those by `grid`, and the score is the mean over all pairs of its pictures; the part is "least", the
    least consistent pair. "mass" is the least p(yes) + p(no) of a sample's answers; where it is too small, it has no
    score.

    Attributes:
        vlm: The model that is asked, such as PaCo-Reward-7B.
        grid: Rows and columns of pictures in one frame.
        consistency: The question about two pictures.
        following: The question about an edit.
        both_orders: Whether every pair is asked both ways round.
        min_mass: Smallest p(yes) + p(no) at which an answer counts as one, in [0, 1].

    Source: PaCo-RL. Its models have a wording of their own; put it into `consistency` and `following`. There, a request
    that fails scores 0 and a word that is not among the 20 likeliest has probability 0.
    """

    vlm: Vlm
    grid: tuple[int, int] = (1, 1)
    consistency: str = "Do both pictures show the same subject in the same style?"
    following: str = "Was the first picture changed into the second as the text asks?"
    both_orders: bool = False
    min_mass: float = 0.1

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or not 0 <= self.min_mass <= 1:
            raise RewardError(f"paco: grid is at least (1, 1), min_mass in [0, 1]; got {self.grid}, {self.min_mass}")

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether gradients reach the pixels: in a model of this process they do."""
        return self.vlm.differentiable

    def __str__(self) -> str:
        """Return the name, and whose answer it is."""
        return f"Paco of {self.vlm}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are empty or too long."""
        for prompt in prompts:
            check_prompt(prompt)

    def waits(self) -> bool:
        """Return whether the model that is asked does."""
        return self.vlm.waits()

    def load(self, *, device: torch.device) -> _PacoScorer:
        """Load the model that is asked."""
        return _PacoScorer(self, self.vlm.load(device=device))


@dataclass(frozen=True)
class _PacoScorer:
    model: Paco
    reader: Reader

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`."""
        for prompt in prompts:
            check_prompt(prompt)
        return self._within(media) if media.source is None else self._edited(media, media.source, prompts)

    def _within(self, media: Media) -> Rewards:
        """Score each sample by the pairs of its own pictures."""
        rows = [_cells(clip, self.model.grid) for clip in clips_of(media)]
        count = len(rows[0])
        if count < 2:
            raise RewardError(
                "paco: a sample is one picture, and there is nothing to compare it with: give the rows and columns of "
                "its pictures as grid, clips, or samples made from a source"
            )
        pairs = [pair for row in rows for pair in combinations(row, 2)]
        score, mass = self._ask(pairs, self.model.consistency, [""] * len(pairs))
        score, mass = score.view(len(rows), -1), mass.view(len(rows), -1).amin(1)
        return self._rewards(score.mean(1), mass, {"least": score.amin(1)})

    def _edited(self, media: Media, source: Media, prompts: Sequence[str]) -> Rewards:
        """Score each sample by what it was made from."""
        pairs = [(before[0], after[-1]) for before, after in zip(clips_of(source), clips_of(media), strict=True)]
        same, mass = self._ask(pairs, self.model.consistency, [""] * len(pairs))
        texts = [f"The text: {plain(prompt)}\n" for prompt in prompts]
        follows, other_mass = self._ask(pairs, self.model.following, texts, either_way=False)
        parts = {"consistent": same, "follows": follows}
        return self._rewards((same * follows).sqrt(), torch.minimum(mass, other_mass), parts)

    def _ask(
        self, pairs: Sequence[tuple[Tensor, Tensor]], asked: str, texts: Sequence[str], *, either_way: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return the conditional p(yes) about each pair of pictures, and the mass of the answer."""
        orders = [pairs, [(b, a) for a, b in pairs]] if self.model.both_orders and either_way else [pairs]
        found = [
            self.reader.verdicts(
                [
                    Question((a[None], b[None], f"\n{text}{asked} {_ANSWER}"), _FPS)
                    for (a, b), text in zip(order, texts, strict=True)
                ]
            )
            for order in orders
        ]
        score = torch.stack([verdicts.log_odds.sigmoid() for verdicts in found]).mean(0)
        return score, torch.stack([verdicts.mass for verdicts in found]).amin(0)

    def _rewards(self, value: Tensor, mass: Tensor, parts: dict[str, Tensor]) -> Rewards:
        answered = mass >= self.model.min_mass  # NaN, where there was no verdict, is not
        named = {name: part.detach() for name, part in parts.items()}
        return Rewards(value.masked_fill(~answered, torch.nan), {**named, "mass": mass.detach()})


def _cells(clip: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """Return the pictures `[3, h, w]` in the frames of a clip `[F, 3, H, W]`, row by row."""
    height, width = clip.shape[-2] // grid[0], clip.shape[-1] // grid[1]
    if not height or not width:
        raise RewardError(f"paco: pictures of {clip.shape[-2]} x {clip.shape[-1]} cannot be cut into a grid of {grid}")
    return [
        frame[:, y * height : (y + 1) * height, x * width : (x + 1) * width]
        for frame in clip
        for y in range(grid[0])
        for x in range(grid[1])
    ]
