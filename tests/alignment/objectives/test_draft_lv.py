"""DRaFT-LV: the finished sample is noised again several times, and the gradients of its last steps are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Starts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.sources.prompts_only import PromptsOnly
from alignment.training.loop import Trainer
from reward_models.measures.colour import Colour
from samplers import Conductor, Look, Native
from tests.support.toy import STEPS, saved, toy_run, trainer_of

SUMMED = 1e-5  # relative, of a mean of gradients taken in two orders
DRAWS, NOISES = 16, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    made = trainer_of(toy_run(folder, PromptsOnly(4, Colour()), DRaFT(), 10))
    yield made
    made.runtime.close()


def gradient(ctx: Context, batch: Starts, objective: DRaFT) -> Tensor:
    """Return the gradient of the mean loss of the rows."""
    parameters = list(ctx.policy.trainable.values())
    total = [torch.zeros_like(p) for p in parameters]

    def learn(loss: Loss) -> None:
        for held, part in zip(total, torch.autograd.grad(loss.per_row.mean(), parameters), strict=True):
            held += part

    objective(ctx, batch, learn)
    return torch.cat([part.flatten() for part in total])


@pytest.mark.parametrize("last", [1, 3])
def test_states_are_the_finished_sample_noised_to_where_the_last_steps_begin(trainer: Trainer, last: int) -> None:
    ctx = trainer.context(0)
    batch, sigmas = trainer.experience(ctx).batch, []
    look = Look(lambda x, v, grid: sigmas.append(grid.sigma(STEPS - last)))
    own = Conductor([look, *([Native()] * (STEPS - 1))])
    trainer.policy.call(own, batch.prompts, batch.seeds, pixels=False)
    states = torch.stack(DRaFT(last, noises=200).states(ctx, batch, STEPS - last))
    noise = (states - (1 - sigmas[0]) * own.final) / sigmas[0]
    assert noise.mean(dim=0).abs().max() < 0.3  # four standard errors of 200 draws
    assert (noise.std(dim=0) - 1).abs().max() < 0.2


def test_the_gradient_is_the_mean_over_the_noises(trainer: Trainer) -> None:
    ctx = trainer.context(0)
    batch = trainer.experience(ctx).batch
    states = DRaFT(noises=3).states(ctx, batch, STEPS - 1)

    class First(DRaFT):
        """Starts from the first of the states that are left."""

        def states(self, ctx, batch, first):
            return [left.pop(0)]

    left = list(states)
    alone = torch.stack([gradient(ctx, batch, First()) for _ in states]).mean(dim=0)
    together = gradient(ctx, batch, DRaFT(noises=3))
    torch.testing.assert_close(together, alone, rtol=SUMMED, atol=SUMMED * together.abs().max().item())


def test_more_noises_make_the_gradient_steadier(trainer: Trainer) -> None:
    """Samples and prompts the same, the variance falls as one over the number of noises."""
    ctx = trainer.context(0)
    batch = trainer.experience(ctx).batch
    spread = {}
    for noises in (1, NOISES):
        draws = [gradient(replace(ctx, draw=Draw(seed)), batch, DRaFT(noises=noises)) for seed in range(DRAWS)]
        spread[noises] = torch.stack(draws).var(dim=0).sum().item()
    assert 0.5 / NOISES < spread[NOISES] / spread[1] < 2 / NOISES


def test_what_cannot_be_noised_again_is_refused() -> None:
    with pytest.raises(ConfigError, match="noises must be >= 1 or null, got 0"):
        DRaFT(noises=0)
    with pytest.raises(ConfigError, match="not before all 4"):
        DRaFT(last=4, noises=2).check_rounds(4)
