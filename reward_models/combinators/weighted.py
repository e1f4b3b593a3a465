"""A weighted sum of rewards, with gates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.base import (
    Loaded,
    Media,
    RewardError,
    RewardModel,
    Rewards,
    Scope,
    Size,
    load_reward,
    require_reward_model,
)


@dataclass(frozen=True)
class WeightedPart:
    """One term of the sum: weight * (score - centre) / spread.

    Attributes:
        reward: What to score with.
        weight: Factor of the normalised score. Negative makes it a penalty; 0 only records it, or only gates by it.
        centre: The score that counts as 0, in the part's own units.
        spread: The difference of scores that counts as 1, more than 0.
        at_least: A gate: samples with a lower score get the sum's `gated` value. Null means no gate.
    """

    reward: RewardModel
    weight: float = 1.0
    centre: float = 0.0
    spread: float = 1.0
    at_least: float | None = None


@dataclass(frozen=True)
class Weighted(RewardModel):
    """Score the sum of weight * (score - centre) / spread over the parts; what fails a gate scores `gated`.

    A sample that a part with a weight or a gate could not score (NaN) has no score. The parts of the result are each
    part's own score, as it gave it, under its name, and that part's own parts as "name/part"; with gates there is one
    more, "passed", 1 or 0.

    Centre and spread are constants. An advantage can normalise by the statistics of a step: it sees the samples of all
    processes, and `parts`.

    Attributes:
        parts: The terms, by a name of your own.
        gated: Score of a sample that fails a gate; needed with gates. Choose it below what samples that pass score.
    """

    parts: Mapping[str, WeightedPart]
    gated: float | None = None

    def __post_init__(self) -> None:
        for name, part in self.parts.items():
            require_reward_model(part.reward)
            for field in ("weight", "centre", "spread", "at_least"):
                if not math.isfinite(vars(part)[field] or 0.0):
                    raise RewardError(f"weighted: {field} of {name} has to be finite, got {vars(part)[field]}")
            if not part.spread > 0:
                raise RewardError(f"weighted: the spread of {name} has to be more than 0, got {part.spread}")
        if not math.isfinite(self.gated or 0.0):
            raise RewardError(f"weighted: gated has to be finite, got {self.gated}")
        if not any(part.weight for part in self.parts.values()):
            raise RewardError(f"weighted: no part has a weight: {', '.join(self.parts) or 'there are no parts'}")
        gates = [name for name, part in self.parts.items() if part.at_least is not None]
        if gates and self.gated is None:
            raise RewardError(f"weighted: {', '.join(gates)} is a gate (at_least); give its failures a score: gated")
        if not gates and self.gated is not None:
            raise RewardError("weighted: gated is the score of what fails a gate, but no part has at_least")
        if gates and "passed" in self.parts:
            raise RewardError("weighted: with gates the name 'passed' is taken; give that part another one")

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether gradients reach the pixels through every part that has a weight."""
        return all(part.reward.differentiable for part in self.parts.values() if part.weight)

    @property
    def scope(self) -> Scope:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether some part compares the samples of a group."""
        return "group" if any(part.reward.scope == "group" for part in self.parts.values()) else "sample"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what a part refuses."""
        for part in self.parts.values():
            part.reward.check(prompts)

    def size(self) -> Size | None:
        """Return the sum over the parts; None where one is not known."""
        sizes = [part.reward.size() for part in self.parts.values()]
        known = [size for size in sizes if size is not None]
        return sum(known, start=Size()) if len(known) == len(sizes) else None

    def part_names(self) -> tuple[str, ...]:
        """Return the names of the terms, and "passed" with gates."""
        return (*self.parts, *(() if self.gated is None else ("passed",)))

    def right_or_wrong(self) -> tuple[str, ...]:
        """Return those of its terms, and "passed" with gates."""
        found = ((name, sub) for name, part in self.parts.items() for sub in part.reward.right_or_wrong())
        return (
            *(f"{name}/{sub}" if sub else name for name, sub in found),
            *(() if self.gated is None else ("passed",)),
        )

    def reads_prompts(self) -> bool:
        """Return whether that is so of any part."""
        return any(part.reward.reads_prompts() for part in self.parts.values())

    def waits(self) -> bool:
        """Return whether every part does."""
        return all(part.reward.waits() for part in self.parts.values())

    def load(self, *, device: torch.device) -> _WeightedScorer:
        """Load every part on `device`."""
        return _WeightedScorer(
            self, {name: load_reward(part.reward, device=device) for name, part in self.parts.items()}
        )


@dataclass(frozen=True)
class _WeightedScorer:
    model: Weighted
    scorers: Mapping[str, Loaded]

    @property
    def inner(self) -> tuple[Loaded, ...]:
        """The parts."""
        return tuple(self.scorers.values())

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        """Score with every part and add up."""
        device = media.pixels.device
        unscored = torch.zeros(len(media), dtype=torch.bool, device=device)
        value = torch.zeros(len(media), dtype=torch.float32, device=device)
        passed = torch.ones(len(media), dtype=torch.float32, device=device)
        parts = {}
        for name, term in self.model.parts.items():
            rewards = self.scorers[name](media=media, prompts=prompts, group=group)
            score = rewards.value.to(device)
            # Left out rather than multiplied: 0 times a missing score would still be missing.
            if term.weight:
                value = value + term.weight * (score - term.centre) / term.spread
                unscored = unscored | score.isnan()
            if term.at_least is not None:
                kept = (score >= term.at_least).float().masked_fill(score.isnan(), torch.nan)
                passed = passed * kept
            parts[name] = rewards.value
            parts.update({f"{name}/{sub}": score for sub, score in rewards.parts.items()})
        if not bool((value.isfinite() | unscored).all()):  # infinite, or NaN where infinities cancel
            raise RewardError("weighted: the sum is larger than float32 can hold; give smaller weights")
        if self.model.gated is not None:
            missing = value.isnan() | passed.isnan()
            value = torch.where(passed == 1, value, self.model.gated).masked_fill(missing, torch.nan)
            parts["passed"] = passed
        return Rewards(value, parts)
