"""Each method raises the reward on a mixture in the plane, where what should happen is known; 20 updates, not 150.

The reference run and its controls: 150 updates at half the rate bring the reward of -2 to about -0.02, a flipped
advantage diverges, and the weight of the divergence from the reference trades reward for spread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from alignment.config.run import BatchSettings, Optimizer
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.objectives.base import Objective
from alignment.objectives.forward_process.dgpo import DGPO
from alignment.objectives.forward_process.fpo import FPO
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.forward_process.weighted_matching import WeightedMatching
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.policy_gradient.guarded_surrogate import GuardedSurrogate
from alignment.objectives.policy_gradient.spo import SPO
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.on_policy_tree import OnPolicyTree
from alignment.training.loop import Trainer
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from samplers.dynamics.base import Dynamics
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from samplers.windows.branch import Branch
from samplers.windows.fraction import Fraction
from samplers.windows.sliding import Sliding
from tests.support.toy import GROUPS, REWARD, fit, near_the_right_mode, points, saved, toy_run, trainer_of

UPDATES, CONTROL = 20, 10
FAST = Optimizer(learning_rate=2e-3)
GAIN = 1.0  # of the reward; the base scores about -2, its right-hand half alone -0.4
GAIN_OF_HALF = 0.7  # in `CONTROL` updates
LOSS = 0.5  # in half of those, with flipped credit
EXACT = 1e-6  # of the first ratio
DRAWN = 500


@dataclass(frozen=True)
class Measured:
    reward: float
    right: float
    spread: float


class Flipped(GroupNorm):
    """Blames what it should praise."""

    def __call__(self, rewards, group):
        return -super().__call__(rewards, group)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=1500)


@pytest.fixture(scope="module")
def base(folder: Path) -> Measured:
    return measured(trainer_of(toy_run(folder, steps(FlowSDE()), ClippedSurrogate(), 1)))


def steps(dynamics: Dynamics, **changes: object) -> Source:
    settings = {"group_size": 24, "shared_noise": False, "window": All(), "reward": REWARD, **changes}
    return OnPolicySteps(prompts=GROUPS, dynamics=dynamics, **settings)


def samples(**changes: object) -> Source:
    return OnPolicy(GROUPS, REWARD, **{"group_size": 24, "weights": "behaviour", **changes})


def measured(trainer: Trainer) -> Measured:
    media = trainer.policy.generate(("prompt 0",) * DRAWN, torch.arange(DRAWN), {})
    x = points(media.pixels)[:, 0]
    reward = near_the_right_mode(media.pixels, ()).mean().item()
    return Measured(reward, (x > 0).float().mean().item(), x.std().item())


def trained(folder: Path, source: Source, objective: Objective, updates: int = UPDATES, **changes: object):
    trainer = trainer_of(toy_run(folder, source, objective, updates, **{"optimizer": FAST, **changes}))
    lines = fit(trainer)
    found = measured(trainer)
    trainer.runtime.close()
    return lines, found


def test_the_base_knows_both_modes(base: Measured) -> None:
    assert -2.6 < base.reward < -1.6
    assert 0.4 < base.right < 0.6
    assert base.spread > 1.5


GRPO = {
    "DanceGRPO": steps(DanceSDE(0.3)),
    "DanceGRPO, 60 % of the steps": steps(DanceSDE(0.3), window=Fraction(0.6)),
    "Flow-GRPO": steps(FlowSDE(0.7)),
}


@pytest.mark.parametrize("source", GRPO.values(), ids=GRPO)
def test_policy_gradients_climb(folder: Path, base: Measured, source: Source) -> None:
    lines, found = trained(folder, source, ClippedSurrogate(clip=1e-2))
    assert max(line["ratio/first_error_max"] for line in lines) <= EXACT
    assert found.reward > base.reward + GAIN
    assert found.right > 0.85


def test_a_tree_climbs(folder: Path, base: Measured) -> None:
    source = OnPolicyTree(GROUPS, FlowSDE(0.7), REWARD, splits=(0, 1, 3, 5))
    lines, found = trained(folder, source, ClippedSurrogate(clip=1e-2, weight="equal"))
    assert max(line["ratio/first_error_max"] for line in lines) <= EXACT
    assert found.reward > base.reward + GAIN


def test_branching_climbs(folder: Path, base: Measured) -> None:
    source = steps(FlowSDE(0.7), shared_noise=True, window=Branch((0, 1, 2, 3)), prompts_per_call=2)
    lines, found = trained(folder, source, ClippedSurrogate(clip=1e-2, weight="equal"))
    assert max(line["ratio/first_error_max"] for line in lines) <= EXACT
    assert found.reward > base.reward + GAIN


VARIANTS: dict[str, tuple[Source, Objective]] = {
    "SPO": (steps(FlowSDE(0.7)), SPO(clip=1e-2)),
    "GRPO-Guard": (steps(FlowSDE(0.7)), GuardedSurrogate(clip=1e-2)),
    "MixGRPO": (steps(FlowSDE(0.7), window=Sliding(4, every=3)), ClippedSurrogate(clip=1e-2)),
    "best of N": (steps(FlowSDE(0.7), keep=8), ClippedSurrogate(clip=1e-2)),
    "Pref-GRPO": (
        steps(FlowSDE(0.7), reward=WinRate(BradleyTerry(REWARD, temperature=0.1), batch_size=1024)),
        ClippedSurrogate(clip=1e-2),
    ),
    "TempFlow-GRPO": (
        steps(FlowSDE(0.7), group_size=12, shared_noise=True, window=Branch((0, 1, 2)), prompts_per_call=1),
        ClippedSurrogate(clip=1e-2, weight="sigma"),
    ),
    # The posterior of a rectified flow is narrow at the end: unweighted, late steps would hold the gradient.
    "DDPO": (steps(DDIM()), ClippedSurrogate(clip=1e-2, weight="equal")),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_climb_as_well_in_half_the_updates(folder: Path, base: Measured, name: str) -> None:
    lines, found = trained(folder, *VARIANTS[name], CONTROL)
    assert max(line["ratio/first_error_max"] for line in lines) <= EXACT
    assert found.reward > base.reward + GAIN_OF_HALF
    assert found.right > base.right + 0.1


@pytest.mark.parametrize("name", ["SPO", "GRPO-Guard", "MixGRPO", "TempFlow-GRPO", "DDPO"])
def test_variants_fall_where_their_credit_is_flipped(folder: Path, base: Measured, name: str) -> None:
    source, objective = VARIANTS[name]
    _, found = trained(folder, replace(source, advantage=Flipped()), objective, CONTROL // 2)
    assert found.reward < base.reward - LOSS
    assert found.right < base.right


def test_a_clip_of_a_large_latent_stalls_a_small_one(folder: Path, base: Measured) -> None:
    """The mean over two elements moves far: 1e-4, meant for tens of thousands, cuts nearly all of a later update."""
    four = {"batch": BatchSettings(updates=4, microbatch=1024)}
    wide, narrow = (
        trained(folder, steps(FlowSDE(0.7)), ClippedSurrogate(clip=c), CONTROL // 2, **four) for c in (0.1, 1e-4)
    )
    assert wide[1].reward - base.reward > 2 * (narrow[1].reward - base.reward)
    assert narrow[0][-1]["clip/fraction"] > 0.6 > 0.3 > wide[0][-1]["clip/fraction"]


@pytest.mark.parametrize("objective", [NFT(), WeightedMatching()], ids=["NFT", "AWM"])
def test_forward_process_methods_climb(folder: Path, base: Measured, objective: Objective) -> None:
    _, found = trained(folder, samples(), objective)
    assert found.reward > base.reward + GAIN
    assert found.right > 0.85


@pytest.mark.parametrize(
    ("objective", "gain"), [(DGPO(beta=1.0, clip=1.0), GAIN), (FPO(points=4, kl=0.1), 0.3)], ids=["DGPO", "FPO"]
)
def test_those_whose_pull_fades_climb_more_slowly(
    folder: Path, base: Measured, objective: Objective, gain: float
) -> None:
    """DGPO's groups pull less as they learn; FPO's errors of the noise say little near t = 1, and need to be held."""
    _, found = trained(folder, samples(), objective)
    assert found.reward > base.reward + gain
    assert found.right > base.right + 0.1


@pytest.mark.parametrize(
    ("source", "objective", "worse"),
    [
        (steps(FlowSDE(0.7), advantage=Flipped()), ClippedSurrogate(clip=1e-2), GAIN),
        (samples(advantage=Flipped()), NFT(), GAIN),
        (samples(advantage=Flipped()), WeightedMatching(), GAIN),
        (samples(advantage=Flipped()), DGPO(beta=1.0, clip=1.0), GAIN),
        (samples(advantage=Flipped()), FPO(points=4, kl=0.1), 0.3),
    ],
    ids=["Flow-GRPO", "NFT", "AWM", "DGPO", "FPO"],
)
def test_flipped_credit_makes_it_worse(
    folder: Path, base: Measured, source: Source, objective: Objective, worse: float
) -> None:
    _, found = trained(folder, source, objective, CONTROL)
    assert found.reward < base.reward - worse
    assert found.right < base.right


def test_the_weight_of_the_divergence_holds_it_back(folder: Path, base: Measured) -> None:
    objectives = [ClippedSurrogate(clip=1e-2, kl=kl) for kl in (0, 1, 20)]
    found = [trained(folder, steps(FlowSDE(0.7)), objective, CONTROL // 2)[1] for objective in objectives]
    rewards, spreads = [one.reward for one in found], [one.spread for one in found]
    assert rewards[0] > rewards[1] > rewards[2] > base.reward - 0.1
    assert spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize(
    "objective",
    [NFT(), WeightedMatching(anchor="reference"), DGPO(beta=1.0, clip=1.0), FPO(points=2)],
    ids=lambda objective: type(objective).__name__,
)
def test_the_distance_from_the_reference_holds_forward_process_methods_back(
    folder: Path, base: Measured, objective: Objective
) -> None:
    found = [trained(folder, samples(), replace(objective, kl=kl), CONTROL)[1].reward for kl in (0.0, 1.0, 10.0)]
    assert found[0] > found[1] > found[2] > base.reward - 0.1


def test_a_rate_of_nothing_learns_nothing(folder: Path, base: Measured) -> None:
    _, found = trained(
        folder, steps(FlowSDE(0.7)), ClippedSurrogate(clip=1e-2), 2, optimizer=Optimizer(learning_rate=1e-12)
    )
    assert abs(found.reward - base.reward) < 1e-3
