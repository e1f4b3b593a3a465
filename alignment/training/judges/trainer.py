"""Training a judge from preference pairs: pairs in, judge out, and the judge is a reward.

What is learned is the next word after the very question that the reward will ask: "yes" about the preferred picture (or
that it is better than the other), "no" about the other. Whatever spelling of the word the model likes counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignment.config.run import Optimizer
from alignment.data.media import Clip
from alignment.data.random_streams import Draw
from alignment.data.tensor_files import heed_umask
from alignment.errors import ConfigError, NumericsError
from alignment.policy.networks.spec import Lora
from alignment.training.judges.pairs import Pair, pairs_of_step, pixels_of
from alignment.training.runtime import optimizers
from alignment.training.runtime.runtime import learning_rate
from reward_models.vlm_rewards.questions import JudgeInput
from reward_models.vlm_rewards.reward_dance import RewardDance
from reward_models.vlms.base import CUE, NO, YES, Question
from reward_models.vlms.local import Local, LocalReader

ADAPTER, MODEL = "adapter", "model"
"""Folder of the result within the run's folder, for LoRA and for full fine-tuning."""


@dataclass(frozen=True)
class JudgeTraining:
    """How a judge is trained.

    Attributes:
        name: Of the run; its folder is output/name.
        reward: The judge as it will be used. With `reference: none` it learns to judge each picture by itself, with any
            other reference to compare two. Its `vlm` is a `local` one, where training starts.
        pairs: `.jsonl` file with "prompt", "chosen", "rejected" per line (and "reason", "reason_reversed" where the
            task has the judge reason first).
        held_out: The same, for measuring; null measures nothing.
        steps: Optimiser steps.
        batch: Pairs per step; each is asked about both ways.
        microbatch: Pairs in one forward-backward pass.
        lora: Adapters to train (targets null means every linear layer); null trains all weights.
        optimizer: The rule of an update, and its schedule.
        gradient_checkpointing: Recompute activations in the backward pass.
        every: Steps between measurements on the held-out pairs; 0 measures at the start and the end only.
        seed: Of the order of pairs and of the adapters.
        output: Parent of the run's folder.
    """

    name: str
    reward: RewardDance
    pairs: str
    held_out: str | None = None
    steps: int = 200
    batch: int = 16
    microbatch: int = 4
    lora: Lora | None = Lora()
    optimizer: Optimizer = Optimizer(learning_rate=1e-4)
    gradient_checkpointing: bool = False
    every: int = 0
    seed: int = 0
    output: str = "runs"

    def __post_init__(self) -> None:
        if not isinstance(self.reward.vlm, Local):
            raise ConfigError(
                f"reward.vlm: only a model of this process can be trained (type: local), not {self.reward.vlm}"
            )
        if self.lora is not None and self.vlm.adapter is not None:
            raise ConfigError("reward.vlm.adapter: an adapter is already there; train all weights (lora: null)")
        if self.lora is not None and self.lora != Lora(self.lora.rank, self.lora.alpha, self.lora.targets):
            raise ConfigError("lora: judges are trained with rank, alpha and targets; leave out the rest")
        if self.lora is None and self.reward.vlm.dtype != "float32":
            raise ConfigError(f"reward.vlm.dtype: all weights are trained in float32, got {self.reward.vlm.dtype}")
        if min(self.steps, self.batch, self.microbatch) < 1 or self.every < 0:
            raise ConfigError("steps, batch and microbatch are at least 1, every at least 0")

    @property
    def vlm(self) -> Local:
        """Where training starts."""
        assert isinstance(self.reward.vlm, Local)
        return self.reward.vlm

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.output) / self.name

    @property
    def trained(self) -> RewardDance:
        """The judge that training makes."""
        where = self.folder / (MODEL if self.lora is None else ADAPTER)
        changed = (
            {"model": str(where), "adapter": None, "revision": None} if self.lora is None else {"adapter": str(where)}
        )
        return replace(self.reward, vlm=replace(self.vlm, **changed))


class JudgeTrainer:
    """A judge that learns.

    Attributes:
        plan: How.
        reader: The model that is asked, unfrozen.
    """

    def __init__(self, plan: JudgeTraining, device: torch.device) -> None:
        self.plan, self.device = plan, device
        self.reader = plan.vlm.load(device=device)
        self._weights = _unfreeze(self.reader, plan)
        self._optimizer = optimizers.make(plan.optimizer, self._weights)

    def step(self, step: int, pairs: Sequence[Pair]) -> dict[str, float]:
        """Learn from the pairs of one step, and return what happened.

        Raises:
            NumericsError: If the loss is not finite.
        """
        plan, total, right = self.plan, 0.0, 0.0
        mine = pairs_of_step(pairs, step, plan.batch, Draw(plan.seed))
        for start in range(0, len(mine), plan.microbatch):
            part = mine[start : start + plan.microbatch]
            loss, margin = self.loss(part)
            (loss * len(part) / len(mine)).backward()
            total += loss.item() * len(part) / len(mine)
            right += (margin > 0).float().sum().item() / len(mine)
        norm = nn.utils.clip_grad_norm_(self._weights.values(), plan.optimizer.max_grad_norm).item()
        if not torch.isfinite(torch.tensor([total, norm])).all():
            raise NumericsError(
                f"the judge's loss at step {step} is {total}, its gradient {norm}: lower the learning rate"
            )
        rate = learning_rate(plan.optimizer, step, plan.steps)
        optimizers.step(self._optimizer, rate)
        self._optimizer.zero_grad()
        return {"loss": total, "accuracy": right, "grad_norm": norm, "learning_rate": rate}

    def loss(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Return the mean next-word loss over the questions about some pairs, and each pair's margin `[B]`."""
        questions, right = self._questions(pairs), [YES] * len(pairs) + [NO] * len(pairs)
        if self.plan.reward.task.reasoning:
            return self._reasoned_loss(questions, right, pairs)
        verdicts = self.reader.verdicts(questions)
        yes, no = verdicts.yes.chunk(2)[0], verdicts.no.chunk(2)[1]
        return -torch.cat([yes, no]).mean(), _margin(verdicts.log_odds)

    def _reasoned_loss(
        self, questions: Sequence[Question], right: Sequence[str], pairs: Sequence[Pair]
    ) -> tuple[Tensor, Tensor]:
        """Learn to write the reason and the verdict after it; the margin is that of the whole answers."""
        thoughts = [pair.reasons[side] for side in (0, 1) for pair in pairs if pair.reasons is not None]
        end = self.reader.processor.tokenizer.eos_token
        answers = [f"{thought}\n{CUE} {word}{end}" for thought, word in zip(thoughts, right, strict=True)]
        wrong = [f"{t}\n{CUE} {NO if word == YES else YES}{end}" for t, word in zip(thoughts, right, strict=True)]
        log_likelihoods = self.reader.log_likelihood(questions, answers)
        with torch.no_grad():
            right_rows, wrong_rows = (log_likelihoods - self.reader.log_likelihood(questions, wrong)).chunk(2)
        return -log_likelihoods.mean(), right_rows + wrong_rows

    @torch.no_grad()
    def accuracy(self, pairs: Sequence[Pair]) -> list[float]:
        """Return for each pair 1 if the judge prefers what people preferred, else 0; NaN without a verdict."""
        right: list[float] = []
        for start in range(0, len(pairs), self.plan.microbatch):
            part = pairs[start : start + self.plan.microbatch]
            verdicts = self.reader.verdicts(self._questions(part), reasoning=self.plan.reward.task.reasoning)
            margin = _margin(verdicts.log_odds)
            right += torch.where(margin.isnan(), margin, (margin > 0).float()).tolist()
        return right

    def save(self) -> Path:
        """Write what was learned, as transformers and PEFT load it, and return the folder."""
        vlm = self.plan.trained.vlm
        assert isinstance(vlm, Local)
        where = Path(vlm.model if self.plan.lora is None else str(vlm.adapter))
        self.reader.model.save_pretrained(where)
        (where / "README.md").unlink(missing_ok=True)  # PEFT writes a form in which nothing is filled in
        if self.plan.lora is None:
            self.reader.processor.save_pretrained(where)
        heed_umask(where)
        return where

    def _questions(self, pairs: Sequence[Pair]) -> list[Question]:
        """Return the questions whose answer is yes, then, in the same order, those whose answer is no."""
        chosen, rejected = ([self._asked(pair, side) for pair in pairs] for side in ("chosen", "rejected"))
        task = self.plan.reward.task
        if self.plan.reward.reference == "none":
            return [question for asked in (*chosen, *rejected) for question in task.about(asked)]
        sides = list(zip(chosen, rejected, strict=True))
        asked = [question for one, other in sides for question in task.between(one, other.clips)]
        return asked + [question for one, other in sides for question in task.between_reversed(one, other.clips)]

    def _asked(self, pair: Pair, side: Literal["chosen", "rejected"]) -> JudgeInput:
        """Return one side of a pair as the judge will be shown samples when it is a reward."""
        medium = pair.chosen if side == "chosen" else pair.rejected
        fps = medium.fps if isinstance(medium, Clip) else None
        return JudgeInput([pixels_of(medium).to(self.device)], [pair.prompt], fps=fps)


def _margin(log_odds: Tensor) -> Tensor:
    """Return by how much yes is likelier where it is right than where it is wrong, `[B]` of `[2 B]`."""
    right, wrong = log_odds.detach().chunk(2)
    return right - wrong


def _unfreeze(reader: LocalReader, plan: JudgeTraining) -> dict[str, nn.Parameter]:
    """Make weights trainable, adapters or all, and return them by name, in float32."""
    if plan.gradient_checkpointing:
        reader.model.gradient_checkpointing_enable()
        reader.model.enable_input_require_grads()
    if plan.lora is None:
        reader.model.requires_grad_(True)
    else:
        reader.model = _with_lora(reader.model, plan.lora, plan.seed)
    weights = {name: weight for name, weight in reader.model.named_parameters() if weight.requires_grad}
    for weight in weights.values():
        weight.data = weight.data.float()
    return weights


def _with_lora(model: Any, lora: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = "all-linear" if lora.targets is None else list(lora.targets)
    settings = LoraConfig(r=lora.usual_rank, lora_alpha=lora.alpha or lora.usual_rank, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, settings)
        except ValueError as error:
            raise ConfigError(f"lora.targets: {str(error).splitlines()[0]}") from error
