"""RewardDance: how sure is a vision-language model that the answer is yes?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from reward_models.base import GroupScorer, Media, RewardError, RewardModel, Rewards, Scope, Scorer
from reward_models.vlm_rewards.questions import Clip, JudgeInput, Task, asked_of, check_prompt, clips_of
from reward_models.vlm_rewards.references import read_references
from reward_models.vlms.base import Question, Reader, Verdicts, Vlm

Definition = Literal["conditional", "probability", "log_odds"]


@dataclass(frozen=True)
class RewardDance(RewardModel):
    """Score the probability that a vision-language model answers "yes" to a question about the sample.

    Against nothing, the question is whether the sample is good; against a reference, whether it is better than that.
    All spellings of yes count together, and so do those of no. A sample whose answer was hardly ever one of the two
    words has no score. Parts: "yes" = p(yes) and "mass" = p(yes) + p(no).

    Attributes:
        vlm: The model that is asked.
        reference: What samples are held against: nothing; the picture they were made from; the best of their own group
            (its winner in a knockout, which then scores an even 0.5); or a picture of your own for each prompt.
        references: For "file": a `.jsonl` file, an object with "prompt" and "media" (a path beside the file) per line.
        score: "conditional" = p(yes) / (p(yes) + p(no)); "probability" = p(yes); "log_odds" = log p(yes) - log p(no),
            which does not flatten out where the model is sure.
        both_orders: Whether a comparison is asked both ways round and averaged, which cancels a preference for what
            stands first. Costs twice as much.
        task: Instruction, criteria, whether to reason before the verdict.
        min_mass: Smallest p(yes) + p(no) at which an answer counts as one, in [0, 1].

    Source: RewardDance (arXiv 2509.08826): p("yes" | sample, reference, prompt, instruction). Its prompts and models
    are not public; the wording is ours. It takes p(yes) over the whole vocabulary, which is "probability"; our default
    is "conditional", which does not reward a model's readiness to answer.
    """

    vlm: Vlm
    reference: Literal["none", "source", "group", "file"] = "none"
    references: str | None = None
    score: Definition = "conditional"
    both_orders: bool = True
    task: Task = Task()
    min_mass: float = 0.1

    def __post_init__(self) -> None:
        if (self.reference == "file") != (self.references is not None):
            raise RewardError(
                f"reward_dance: references is the file of `reference: file`; got references={self.references!r} with "
                f"reference: {self.reference}"
            )
        if not 0 <= self.min_mass <= 1:
            raise RewardError(f"reward_dance: min_mass is a probability, got {self.min_mass}")

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether gradients reach the pixels: in a model of this process they do."""
        return self.vlm.differentiable

    @property
    def scope(self) -> Scope:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether a score depends on the other samples of the group."""
        return "group" if self.reference == "group" else "sample"

    def __str__(self) -> str:
        """Return the name, and whose answer it is."""
        return f"RewardDance with {self.vlm}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are empty, too long, or without a reference where each needs one."""
        for prompt in prompts:
            check_prompt(prompt)
        if self.references is not None:
            references = read_references(self.references)
            for prompt in prompts:
                _reference_of(prompt, references, self.references)

    def waits(self) -> bool:
        """Return whether the model that is asked does."""
        return self.vlm.waits()

    def load(self, *, device: torch.device) -> Scorer | GroupScorer:
        """Load the model that is asked."""
        asker = YesAsker(self, self.vlm.load(device=device))
        if self.reference == "group":
            return _AgainstBest(asker)
        references = {} if self.references is None else read_references(self.references)
        return _Against(asker, references)


@dataclass(frozen=True)
class YesAsker:
    """Puts the questions of a description and makes scores of the answers.

    Attributes:
        model: The description.
        reader: The loaded model.
    """

    model: RewardDance
    reader: Reader

    def alone(self, asked: JudgeInput) -> Rewards:
        """Score each sample by itself."""
        return self._rewards([self.judge(asked)])

    def against(self, asked: JudgeInput, others: Sequence[Clip]) -> Rewards:
        """Score each sample against the other clip of its row; no gradient reaches the others."""
        return self._rewards(self.compare(asked, [clip.detach() for clip in others]))

    def judge(self, asked: JudgeInput) -> Verdicts:
        """Return the verdicts on whether each sample is good."""
        return self._ask(self.model.task.about(asked))

    def compare(self, asked: JudgeInput, others: Sequence[Clip]) -> list[Verdicts]:
        """Return, asked one way round or both, the verdicts on whether each sample is better than the other clip."""
        verdicts = [self._ask(self.model.task.between(asked, others))]
        if self.model.both_orders:
            verdicts.append(self._ask(self.model.task.between_reversed(asked, others)).reversed)
        return verdicts

    def _ask(self, questions: Sequence[Question]) -> Verdicts:
        return self.reader.verdicts(questions, reasoning=self.model.task.reasoning)

    def _rewards(self, verdicts: Sequence[Verdicts]) -> Rewards:
        scores = torch.stack([_score(verdict, self.model.score) for verdict in verdicts]).mean(0)
        yes = torch.stack([verdict.yes.exp() for verdict in verdicts]).mean(0)
        mass = torch.stack([verdict.mass for verdict in verdicts]).amin(0)
        # A missing verdict is NaN, and NaN is not above anything either.
        scores = scores.masked_fill(~(mass >= self.model.min_mass), torch.nan)
        return Rewards(scores, {"yes": yes.detach(), "mass": mass.detach()})


def _score(verdict: Verdicts, definition: Definition) -> Tensor:
    if definition == "probability":
        return verdict.yes.exp()
    return verdict.log_odds if definition == "log_odds" else verdict.log_odds.sigmoid()


@dataclass(frozen=True)
class _Against:
    """Scores samples one by one."""

    asker: YesAsker
    references: Mapping[str, Clip]

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; see `RewardDance`."""
        model = self.asker.model
        if model.reference == "none":
            return self.asker.alone(asked_of(media, prompts))
        if model.reference == "file":
            file = model.references or ""
            others = [_reference_of(prompt, self.references, file).to(media.pixels.device) for prompt in prompts]
            return self.asker.against(asked_of(media, prompts), others)
        if media.source is None:
            raise RewardError("reward_dance: reference: source, but the samples were made from text alone")
        return self.asker.against(asked_of(replace(media, source=None), prompts), clips_of(media.source))


@dataclass(frozen=True)
class _AgainstBest:
    """Scores the samples of a group against the best of them."""

    asker: YesAsker

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor) -> Rewards:
        """Score `media`; see `RewardDance`."""
        best = self._winners(media, prompts, group)
        rows = torch.tensor([best[index] for index in group.tolist()])
        return self.asker.against(asked_of(media, prompts), clips_of(media[rows]))

    @torch.no_grad()
    def _winners(self, media: Media, prompts: Sequence[str], group: Tensor) -> dict[int, int]:
        """Return the row that wins the knockout of each group: N - 1 comparisons in log2 N rounds.

        Who meets whom is decided by what the samples are, so that the order of the rows does not matter.
        """
        seeded = sorted(range(len(media)), key=lambda row: _digest(media.pixels[row]))
        left: dict[int, list[int]] = {}
        for row in seeded:
            left.setdefault(int(group[row]), []).append(row)
        while any(len(rows) > 1 for rows in left.values()):
            matches = [match for rows in left.values() for match in zip(rows[::2], rows[1::2], strict=False)]
            first, second = torch.tensor(matches).unbind(1)
            texts = [prompts[i] for i, _ in matches]
            verdicts = self.asker.compare(asked_of(media[first], texts), clips_of(media[second]))
            odds = torch.stack([verdict.log_odds for verdict in verdicts]).mean(0).tolist()
            # Where there is no verdict the first goes on: a reference it can be, only not a proven one.
            lost = {match[0] if odd < 0 else match[1] for match, odd in zip(matches, odds, strict=True)}
            left = {index: [row for row in rows if row not in lost] for index, rows in left.items()}
        return {index: rows[0] for index, rows in left.items()}


def _digest(pixels: Tensor) -> bytes:
    return hashlib.blake2b(pixels.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=16).digest()


def _reference_of(prompt: str, references: Mapping[str, Clip], file: str) -> Clip:
    if prompt not in references:
        raise RewardError(f"reward_dance: {file} has no reference for the prompt {prompt[:80]!r}")
    return references[prompt]
