"""Ways of taking one update that must agree: any microbatch, a group at once or sample by sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.config.run import PolicySpec, Run
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.structures.perceptual import Perceptual
from alignment.data.batches import Batch, Transitions
from alignment.objectives.base import Objective
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.forward_process.weighted_matching import WeightedMatching
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.vipo import ViPO
from alignment.policy.networks.spec import Lora
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import Trainer, microbatches, rows_per_unit
from reward_models.measures.jpeg import Jpeg
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from samplers.windows.branch import Branch
from samplers.windows.random import Random
from tests.support.tiny import FLUX_CALL
from tests.support.toy import toy_run, trainer_of

ROUNDING = 1e-5  # of the gradient's norm: float32 sums in another order
ACTIONS = 4

DANCE = OnPolicySteps(2, Jpeg(), DanceSDE(), All(), group_size=ACTIONS)
BRANCH = OnPolicySteps(2, Jpeg(), FlowSDE(), Branch((0, 1)), group_size=ACTIONS, prompts_per_call=1)
SPREAD = Perceptual(Saliency(patch=2))
CLEAN = OnPolicy(2, Jpeg(), group_size=ACTIONS)
PAIRS = {
    "dance": (DANCE, ClippedSurrogate(clip=1e-4)),
    "branch": (BRANCH, ClippedSurrogate(clip=1e-4, weight="equal")),
    "vipo": (replace(DANCE, structure=SPREAD), ViPO()),
    "vipo branch": (replace(BRANCH, structure=SPREAD), ViPO(weight="equal")),
    "nft": (CLEAN, NFT()),
    "awm": (CLEAN, WeightedMatching()),
}


def run_of(folder: Path, source: Source, objective: Objective) -> Run:
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    policy = PolicySpec(str(folder), call=dict(FLUX_CALL), lora=Lora(rank=2))
    return toy_run(folder, source, objective, 1, policy=policy)


@pytest.fixture(scope="module")
def folder(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("flux") / "pipeline"
    copy.mkdir()
    for part in flux_folder.iterdir():
        (copy / part.name).symlink_to(part)
    return copy


def moved(trainer: Trainer) -> Trainer:
    """Give adapters, which start at zero, something to differ in."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trainer.policy.trainable.values():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return trainer


def gradient(trainer: Trainer, batch: Batch, size: int) -> Tensor:
    """Return the gradient of one update over `batch`, in microbatches of `size`."""
    ctx, parameters = trainer.context(0), trainer.policy.trainable.values()
    for rows in microbatches(batch, torch.arange(len(batch)), size, rows_per_unit(trainer.run.objective, batch)):
        trainer.run.objective(ctx, batch[rows], lambda loss: trainer.runtime.learn(loss, len(batch)))
    taken = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    trainer.runtime.optimizer.zero_grad()
    return taken


@pytest.mark.parametrize("name", PAIRS)
def test_the_size_of_a_microbatch_changes_an_update_by_rounding_only(folder: Path, name: str) -> None:
    trainer = moved(trainer_of(run_of(folder, *PAIRS[name])))
    batch = trainer.experience(trainer.context(0)).batch
    whole = gradient(trainer, batch, 64)
    assert whole.norm() > 0
    for size in (1, 3):
        assert (gradient(trainer, batch, size) - whole).norm() <= ROUNDING * whole.norm()


def sample_by_sample(batch: Transitions) -> Transitions:
    """Return the same experience with a row for every action."""
    rows = torch.arange(len(batch)).repeat_interleave(batch.actions)
    each = torch.arange(batch.actions).repeat(len(batch))
    spread, row = batch[rows], torch.arange(len(rows))
    return replace(
        spread, x_next=spread.x_next[row, :, each][:, :, None], advantage=spread.advantage[row, each][:, None]
    )


@pytest.mark.parametrize("name", ["branch", "vipo branch"])
def test_a_group_at_once_is_its_samples_one_by_one(folder: Path, name: str) -> None:
    trainer = moved(trainer_of(run_of(folder, *PAIRS[name])))
    batch = trainer.experience(trainer.context(0)).batch
    assert isinstance(batch, Transitions)
    expanded = sample_by_sample(batch)
    assert (batch.actions, expanded.actions) == (ACTIONS, 1)
    assert len(expanded) == ACTIONS * len(batch)
    together = gradient(trainer, batch, 64)
    trainer.policy.share_states = False  # or the policy would find that these rows share their state
    apart = gradient(trainer, expanded, 64)
    assert together.norm() > 0
    assert (together - apart).norm() <= ROUNDING * together.norm()


def test_samples_that_part_in_a_window_share_their_first_state(folder: Path) -> None:
    window = OnPolicySteps(2, Jpeg(), FlowSDE(), Random(size=2, among=(1, 2)), group_size=ACTIONS)
    trainer = moved(trainer_of(run_of(folder, window, ClippedSurrogate(weight="equal"))))
    batch = trainer.experience(trainer.context(0)).batch
    assert isinstance(batch, Transitions)
    rows: list[int] = []
    handle = trainer.policy.denoiser.register_forward_pre_hook(
        lambda _, args, named: rows.append(named["hidden_states"].shape[0]), with_kwargs=True
    )
    together = gradient(trainer, batch, 64)
    shared, rows[:] = list(rows), []
    trainer.policy.share_states = False
    apart = gradient(trainer, batch, 64)
    handle.remove()
    assert shared == [len(batch) // ACTIONS, len(batch)]
    assert rows == [len(batch), len(batch)]
    assert (together - apart).norm() <= ROUNDING * apart.norm()
