"""Pipelines that keep something from round to round: what is made is theirs, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from alignment.config.run import PolicySpec
from alignment.errors import VisalignError
from alignment.objectives.base import Objective
from alignment.objectives.direct_gradient.base import Direct
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.direct_gradient.refl import ReFL
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.policy.between import Between
from alignment.sources.base import Source
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.on_policy_tree import OnPolicyTree
from alignment.sources.prompts_only import PromptsOnly
from alignment.training.loop import Trainer
from reward_models.measures.colour import Colour
from samplers import Conductor, Native
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.base import Choice, Window
from samplers.windows.branch import Branch
from tests.support.toy import REWARD, STEPS, ToyPipeline, saved, toy_run, trainer_of

ROUNDED = 1e-5
"""Of pixels in [0, 1]: products of other numbers of rows, over ten rounds."""
APART = 1e-3
"""What another memory does to them is a hundred times as much."""


class RememberingPipeline(ToyPipeline):
    """Adds half of the answer before, as guidance with momentum does."""

    def guided(self, v: Tensor, before: Tensor) -> Tensor:
        return v + 0.5 * before


diffusers.RememberingPipeline = RememberingPipeline  # where a pipeline's class is looked for


@dataclass(frozen=True)
class One(Window):
    """One step is drawn by itself, in rollouts that have nothing in common but their noise."""

    step: int

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        return Choice((self.step,), (self.step,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture(scope="module")
def trainer(folder: Path) -> Iterator[Trainer]:
    spec = PolicySpec(str(folder), pipeline_class="RememberingPipeline")
    made = trainer_of(toy_run(folder, PromptsOnly(4, Colour()), DRaFT(), 10, policy=spec))
    assert made.policy.between is not Between.SKIPPED
    yield made
    made.runtime.close()


def with_run(trainer: Trainer, source: Source[Any], objective: Objective[Any]) -> Trainer:
    return replace(trainer, run=replace(trainer.run, source=source, objective=objective))


def stepped(trainer: Trainer, window: Window, **changes: object) -> Trainer:
    source = OnPolicySteps(2, REWARD, FlowSDE(), window, group_size=3, **changes)
    trainer.runtime.world.scorer(REWARD)
    return with_run(trainer, source, ClippedSurrogate(clip=1e-2))


@pytest.mark.parametrize("k", [0, 1, 2, 5, STEPS - 2])
def test_samples_of_groups_that_part_later_are_the_pipelines_own(trainer: Trainer, k: int) -> None:
    """The rounds that a group has in common run again at their own states, so that every sample has its memory."""
    parted, apart = stepped(trainer, Branch((k,))), stepped(trainer, One(k), share_prefix=False)
    made, own = (one.experience(one.context(0)) for one in (parted, apart))
    torch.testing.assert_close(made.media.pixels, own.media.pixels, rtol=0, atol=ROUNDED)
    assert (made.media.pixels[:3] - made.media.pixels[0]).abs().amax((1, 2, 3, 4))[1:].min() > APART  # they did part
    answers: list[Tensor] = []
    trainer.policy.replay(made.batch, lambda column, v: answers.append(v), grad=False)
    torch.testing.assert_close(answers[0], made.batch.model_output[:, 0], rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("objective", [DRaFT(1), DRaFT(3), DRaFT(STEPS), ReFL(share=0.3)], ids=repr)
def test_the_reward_that_is_climbed_is_that_of_one_whole_call(trainer: Trainer, objective: Direct) -> None:
    ctx, seen = trainer.context(0), []
    batch, first = trainer.experience(ctx).batch, objective.first(ctx)
    objective(ctx, batch, lambda loss: seen.append(loss.metrics["reward/mean"]))
    whole = Conductor([*([Native()] * first), *objective.finish(first, STEPS)])
    made = ctx.policy.media(batch.prompts, ctx.policy.call(whole, batch.prompts, batch.seeds, pixels=True))
    expected = ctx.world.scorer(Colour())(media=made, prompts=batch.prompts).value
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=ROUNDED)
    assert expected.std() > APART


def test_what_leaves_rounds_out_is_refused(trainer: Trainer) -> None:
    tail = stepped(trainer, Branch((1,)), tail=2)
    tree = with_run(trainer, OnPolicyTree(2, FlowSDE(), REWARD), ClippedSurrogate(clip=1e-2))
    for run in (tail, tree):
        with pytest.raises(VisalignError, match="keeps something from round to round, so"):
            run.experience(run.context(0))
    ctx = trainer.context(0)
    with pytest.raises(VisalignError, match=r"objective\.noises: RememberingPipeline keeps something from round"):
        DRaFT(1, noises=2)(ctx, trainer.experience(ctx).batch, lambda loss: None)
