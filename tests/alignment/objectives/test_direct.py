"""Direct reward gradients: the slope of the reward itself, ended where it should end; the wrong reward is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from alignment.config import checks
from alignment.config.run import PolicySpec
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.direct_gradient.alignprop import AlignProp
from alignment.objectives.direct_gradient.base import Direct
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.direct_gradient.refl import ReFL
from alignment.policy.networks.spec import Lora
from alignment.sources.prompts_only import PromptsOnly
from alignment.training.loop import Trainer
from reward_models.measures.colour import Colour
from reward_models.verifiers.shapes import Shapes
from samplers import Conductor, Native, Skip, Solve, read_grid
from tests.support.tiny import FLUX_CALL
from tests.support.toy import STEPS, fit, saved, toy_run, trainer_of

SLOPE = 2e-3  # relative: central differences of float32 rewards over steps of 1e-2
STEP = 1e-2
ROUNDED = 1e-6  # of a reward near 0.1: float32 kernels with a graph and without
CLOSE = 1e-4  # absolute and relative: the scheduler divides by the root of a float32 product of 1,000 numbers
CLIMB = 0.02  # of the colour of the toy's pictures, over ten updates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    made = trainer_of(toy_run(folder, PromptsOnly(4, Colour()), DRaFT(), 10))
    yield made
    made.runtime.close()


def rewards(trainer: Trainer, start: Tensor | None, first: int) -> Tensor:
    """Return the rewards of the first step's rows, whose rounds before `first` have led to `start`."""
    batch = trainer.experience(trainer.context(0)).batch
    skipped = [*([Skip()] * (first - 1)), Skip(start)] if first else []
    script = [*skipped, *([Native()] * (STEPS - first))]
    made = trainer.policy.call(Conductor(script), batch.prompts, batch.seeds, pixels=True)
    return 1.5 * made.mean((1, 3, 4))[:, 0] - 0.5 * made.mean((1, 3, 4)).sum(1)


@pytest.fixture
def flux_trainer(flux_folder: Path, tmp_path: Path) -> Iterator[Trainer]:
    (tmp_path / "prompts.txt").write_text("red cats\nblue dogs\n")
    spec = PolicySpec(str(flux_folder), call=dict(FLUX_CALL), lora=Lora(rank=2))
    made = trainer_of(toy_run(tmp_path, PromptsOnly(2, Colour()), DRaFT(2), 2, policy=spec))
    yield made
    made.runtime.close()


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("of", ["trainer", "flux_trainer"])
def test_the_reward_is_that_of_what_the_pipeline_makes(request: pytest.FixtureRequest, of: str, last: int) -> None:
    trainer: Trainer = request.getfixturevalue(of)
    ctx = trainer.context(0)
    batch, seen = trainer.experience(ctx).batch, []
    DRaFT(last)(ctx, batch, lambda loss: seen.append(loss.metrics["reward/mean"]))
    made = trainer.policy.generate(batch.prompts, batch.seeds, {})
    expected = ctx.world.scorer(Colour())(media=made, prompts=batch.prompts).value
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=ROUNDED)
    assert expected.std() > 1000 * ROUNDED


@pytest.mark.parametrize("last", [1, 3, STEPS])
def test_the_gradient_is_the_slope_of_the_reward_through_the_last_steps(trainer: Trainer, last: int) -> None:
    """Along a random direction of the weights, with the state before those steps held fixed."""
    ctx, first = trainer.context(0), STEPS - last
    batch, parameters = trainer.experience(ctx).batch, list(trainer.policy.trainable.values())
    prefix = Conductor([*([Native()] * first), *([Skip()] * last)])
    trainer.policy.call(prefix, batch.prompts, batch.seeds, pixels=False)
    start = prefix.final if first else None
    DRaFT(last)(ctx, batch, lambda loss: loss.per_row.sum().backward())
    directions = [torch.randn_like(p) for p in parameters]
    norm = torch.stack([d.square().sum() for d in directions]).sum().sqrt()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p += sign * STEP * d / norm
            ends.append(rewards(trainer, start, first).double().sum())
            for p, d in zip(parameters, directions, strict=True):
                p -= sign * STEP * d / norm
    slope = (ends[0] - ends[1]) / (2 * STEP)
    found = -sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)) / norm
    assert found.item() == pytest.approx(slope.item(), rel=SLOPE, abs=SLOPE * 1e-2)
    trainer.runtime.optimizer.zero_grad()


def test_a_good_enough_sample_pulls_no_more(trainer: Trainer) -> None:
    ctx = trainer.context(0)
    batch, losses = trainer.experience(ctx).batch, []

    def learn(loss: Loss) -> None:
        losses.append(loss.per_row.detach())
        loss.per_row.sum().backward()

    ReFL(threshold=-5.0)(ctx, batch, learn)
    assert torch.equal(losses[0], torch.zeros(len(batch)))
    assert all(not p.grad.any() for p in trainer.policy.trainable.values() if p.grad is not None)
    trainer.runtime.optimizer.zero_grad()
    ReFL(threshold=5.0)(ctx, batch, learn)
    assert any(p.grad.any() for p in trainer.policy.trainable.values())
    trainer.runtime.optimizer.zero_grad()


def test_refl_scores_the_clean_prediction_of_its_round(trainer: Trainer) -> None:
    """At the last round the clean prediction is the sample itself: the reward of ReFL is that of DRaFT."""
    ctx, batch = trainer.context(0), trainer.experience(trainer.context(0)).batch
    seen: list[Tensor] = []
    for objective in (DRaFT(1), ReFL(share=1e-9)):
        objective(ctx, batch, lambda loss: seen.append(loss.metrics["reward/mean"]))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-6)


def test_refl_jumps_to_the_clean_prediction_where_the_last_step_keeps_noise() -> None:
    """Stable Diffusion 1.5's last sigma is .029: the value, and the gradient, are those of the prediction itself."""
    scheduler = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    grid = read_grid(scheduler, scheduler.timesteps)
    for i, t in enumerate(scheduler.timesteps):
        x, v = torch.randn(2, 3, 4)
        expected = scheduler.step(v, t, x).pred_original_sample
        jump = ReFL().finish(i, len(grid))[0]
        assert isinstance(jump, Solve)
        torch.testing.assert_close(jump.solver.step(grid, i, len(grid), x, v), expected, rtol=CLOSE, atol=CLOSE)


def test_the_truncation_is_drawn_anew_each_step_within_its_bounds(trainer: Trainer) -> None:
    drawn = {STEPS - AlignProp(least=2, most=5).first(trainer.context(step)) for step in range(60)}
    assert drawn == {2, 3, 4, 5}
    late = {ReFL(share=0.25).first(trainer.context(step)) for step in range(60)}
    assert late == {7, 8, 9}


@pytest.mark.parametrize("objective", [DRaFT(2), AlignProp(), ReFL()], ids=lambda one: type(one).__name__)
def test_it_climbs(folder: Path, objective: Direct) -> None:
    trainer = trainer_of(toy_run(folder, PromptsOnly(8, Colour(), group_size=4), objective, 10))
    seeds = torch.arange(32)
    before = trainer.policy.generate(("prompt 0",) * 32, seeds, {}).pixels
    lines = fit(trainer)
    after = trainer.policy.generate(("prompt 0",) * 32, seeds, {}).pixels
    assert all(line["reward/unscored_fraction"] == 0 and math.isfinite(line["reward/mean"]) for line in lines)
    assert red(after) > red(before) + CLIMB
    trainer.runtime.close()


def red(pixels: Tensor) -> float:
    means = pixels.mean((0, 1, 3, 4))
    return (1.5 * means[0] - 0.5 * means.sum()).item()


def test_gradients_go_through_a_genuine_decoder(flux_trainer: Trainer) -> None:
    lines = fit(flux_trainer)
    assert all(line["grad/norm"] > 0 for line in lines)


def test_more_steps_than_there_are_is_refused(trainer: Trainer) -> None:
    ctx = trainer.context(0)
    for objective in (DRaFT(STEPS + 1), AlignProp(most=STEPS + 1), AlignProp(least=STEPS + 1)):
        with pytest.raises(ConfigError, match=f"{STEPS + 1} steps .*a call takes {STEPS}"):
            objective.first(ctx)


def test_a_reward_without_gradient_is_refused(tmp_path: Path) -> None:
    run = toy_run(tmp_path, PromptsOnly(2, Shapes()), DRaFT(), 1)
    ((key, message),) = checks.values(run)
    assert key == "source.reward"
    assert "DRaFT climbs the gradient" in message
    assert "Shapes gives it none" in message
    assert not list(checks.values(toy_run(tmp_path, PromptsOnly(2, Colour()), DRaFT(), 1)))
