"""Trees of trajectories: what they share, what they record, and how worth climbs from the leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Transitions
from alignment.errors import ConfigError
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.base import Source
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.on_policy_tree import OnPolicyTree
from alignment.training.loop import Trainer
from reward_models.base import Rewards
from samplers.dynamics.flow_sde import FlowSDE
from samplers.dynamics.ode import ODE
from samplers.windows.branch import Branch
from tests.support.toy import REWARD, STEPS, fit, saved, toy_run, trainer_of

SPLITS, PROMPTS = (1, 2, 4), 2
TREE = OnPolicyTree(PROMPTS, FlowSDE(), REWARD, splits=SPLITS, prompts_per_call=1)
EXACT = 1e-6  # of a first ratio in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    made = trainer_of(toy_run(folder, TREE, ClippedSurrogate(clip=1e-2), 4))
    yield made
    made.runtime.close()


def grown(trainer: Trainer, source: Source) -> Transitions:
    trainer = replace(trainer, run=replace(trainer.run, source=source))
    return trainer.experience(trainer.context(0)).batch


def at(batch: Transitions, depth: int) -> Transitions:
    return batch[(batch.index[:, 0] == SPLITS[depth]).nonzero().flatten()]


def test_every_depth_has_its_nodes_and_every_leaf_its_score(trainer: Trainer) -> None:
    found = trainer.experience(trainer.context(0))
    assert [len(at(found.batch, depth)) for depth in range(3)] == [PROMPTS, 2 * PROMPTS, 4 * PROMPTS]
    assert found.batch.actions == 2
    assert len(found.rewards.value) == len(found.media) == 8 * PROMPTS


def test_a_tree_of_one_split_is_a_branching_window(trainer: Trainer) -> None:
    tree = grown(trainer, OnPolicyTree(PROMPTS, FlowSDE(), REWARD, splits=(2,), branching=6))
    window = grown(trainer, OnPolicySteps(PROMPTS, REWARD, FlowSDE(), Branch((2,)), group_size=6))
    for name in ("seeds", "group", "index", "x", "x_next", "model_output", "coefficients", "advantage"):
        torch.testing.assert_close(getattr(tree, name), getattr(window, name), rtol=0, atol=0, msg=name)
    assert torch.equal(tree.mean_std, window.mean_std)


def test_siblings_leave_one_state_and_cousins_others(trainer: Trainer) -> None:
    batch = grown(trainer, TREE)
    states = [at(batch, depth).x[:, 0] for depth in range(3)]
    assert all(len(x.unique(dim=0)) == len(x) for x in states)
    # Splits at 1 and 2 adjoin: what an action led to is the state of the next node, bit for bit.
    assert torch.equal(at(batch, 0).x_next[:, 0].flatten(0, 1), states[1])


def test_a_node_is_worth_the_mean_of_its_leaves_and_depths_weigh_alike(trainer: Trainer) -> None:
    found = trainer.experience(trainer.context(0))
    leaves, rows = found.rewards.value.view(PROMPTS, 8), len(found.batch)
    for depth, nodes in enumerate((2, 4, 8)):
        worth = leaves.view(PROMPTS, nodes, -1).mean(dim=2)
        torch.testing.assert_close(worth.mean(dim=1), leaves.mean(dim=1))  # the root
        group = torch.arange(PROMPTS).repeat_interleave(nodes)
        expected = GroupNorm()(Rewards(worth.flatten()), group).view(-1, 2)
        part = at(found.batch, depth)
        torch.testing.assert_close(part.advantage, expected * rows / (3 * len(part)))
        assert part.advantage.view(PROMPTS, -1).sum(dim=1).abs().max() < 1e-4


@pytest.mark.parametrize("trained", [(4,), (1, 2), (2, 4)], ids=str)
def test_pruned_depths_have_no_rows_and_the_others_are_as_they_were(trainer: Trainer, trained: tuple[int, ...]) -> None:
    whole, pruned = grown(trainer, TREE), grown(trainer, replace(TREE, trained=trained))
    rows = {depth: len(at(whole, depth)) for depth, k in enumerate(SPLITS) if k in trained}
    assert len(pruned) == sum(rows.values())
    for depth, count in rows.items():
        before, after = at(whole, depth), at(pruned, depth)
        for name in ("seeds", "group", "index", "x", "x_next", "model_output", "coefficients"):
            assert torch.equal(getattr(after, name), getattr(before, name)), name
        # Each depth's share of a mean over rows: a third of all before, now one in as many as are trained.
        torch.testing.assert_close(
            after.advantage * count * len(rows) / len(pruned), before.advantage * count * len(SPLITS) / len(whole)
        )


def test_it_learns_from_ratios_of_one(trainer: Trainer) -> None:
    lines = fit(trainer)
    assert all(line["ratio/first_error_max"] <= EXACT for line in lines)
    assert all(line["grad/norm"] > 0 for line in lines)


def test_what_cannot_be_a_tree_is_refused(trainer: Trainer) -> None:
    for changes, says in (
        ({"splits": (2, 1)}, "ascending"),
        ({"splits": ()}, "one or more steps"),
        ({"branching": 1}, "without siblings"),
        ({"dynamics": ODE()}, "deterministic"),
        ({"prompts_per_call": 3}, "must divide prompts"),
        ({"trained": ()}, "one or more of the splits"),
        ({"trained": (1, 3)}, r"of the splits \(1, 2, 4\), each once, got \(1, 3\)"),
        ({"trained": (1, 1)}, "one or more of the splits"),
    ):
        with pytest.raises(ConfigError, match=says):
            replace(TREE, **changes)
    with pytest.raises(ConfigError, match="the last"):
        grown(trainer, replace(TREE, splits=(STEPS - 1,)))


class Blind(GroupNorm, Advantage):
    """Sees that worths of a depth are compared within their prompt."""

    def __call__(self, rewards: Rewards, group: torch.Tensor) -> torch.Tensor:
        assert len(group.unique()) == PROMPTS
        return super().__call__(rewards, group)


def test_any_advantage_may_compare_the_nodes(trainer: Trainer) -> None:
    assert torch.equal(grown(trainer, replace(TREE, advantage=Blind())).advantage, grown(trainer, TREE).advantage)
