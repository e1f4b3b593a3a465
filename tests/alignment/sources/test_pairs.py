"""Preferences: pairs made on policy, and the objectives that learn from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.config.run import Optimizer
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Batch, Pairs, Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss, Objective
from alignment.objectives.forward_process.noising import draw_points, error_change, mean_square
from alignment.objectives.forward_process.weighted_matching import WeightedMatching
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.ipo import IPO
from alignment.objectives.preference.rebel import REBEL
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.training.loop import Trainer
from reward_models.base import Rewards
from samplers.paths.times import Times
from tests.support.toy import REWARD, fit, saved, toy_run, trainer_of

SAME = 1e-5  # relative: float32 sums in another order
STEPS = 60
RISE = 0.8  # of a reward that starts near -2; 1.2 was seen
SOLVED = 1e-6  # absolute, of probabilities: where the steps of a quadratic's solver end in float64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=300)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    made = trainer_of(toy_run(folder, OnPolicyPairs(8, REWARD, group_size=4), DPO(beta=20.0), 1))
    yield made
    made.runtime.close()


def learned(
    trainer: Trainer, batch: Batch, objective: Objective[Batch] | None = None
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return the rows' losses, the metrics and the flat gradient."""
    found: list[Loss] = []

    def learn(loss: Loss) -> None:
        loss.per_row.sum().backward()
        found.append(loss)

    (objective or trainer.run.objective)(trainer.context(0), batch, learn)
    (loss,) = found
    return loss.per_row.detach(), dict(loss.metrics), taken(trainer)


def move(trainer: Trainer) -> None:
    with torch.no_grad():
        for p in trainer.policy.trainable.values():
            p += 0.01 * torch.randn(p.shape)


def taken(trainer: Trainer) -> Tensor:
    gradient = torch.cat([p.grad.flatten() for p in trainer.policy.trainable.values() if p.grad is not None])
    trainer.runtime.optimizer.zero_grad()
    return gradient


def pull_of_the_errors(trainer: Trainer, batch: Pairs, weight: Tensor) -> Tensor:
    """Return the gradient of each pair's weight times [e(chosen) - e(rejected)], summed."""
    for sign, x0 in ((1.0, batch.chosen), (-1.0, batch.rejected)):
        (point,) = draw_points(trainer.context(0), batch, x0, Times(), 1)

        def receive(k: int, v: Tensor, sign: float = sign, target: Tensor = point.target) -> None:
            (sign * weight * mean_square(v - target)).sum().backward()

        trainer.policy.visit(batch, [(point.x, point.t)], receive, grad=True)
    return taken(trainer)


def pairs(trainer: Trainer) -> Pairs:
    batch = trainer.experience(trainer.context(0)).batch
    assert isinstance(batch, Pairs)
    return batch


def test_at_the_reference_every_pair_costs_ln_2(trainer: Trainer) -> None:
    losses, _, _ = learned(trainer, pairs(trainer))
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)))


def test_swapping_the_sides_swaps_the_margin(trainer: Trainer) -> None:
    batch = pairs(trainer)
    move(trainer)
    _, there, _ = learned(trainer, batch)
    _, back, _ = learned(trainer, replace(batch, chosen=batch.rejected, rejected=batch.chosen))
    _, sign, _ = learned(trainer, replace(batch, advantage=-batch.advantage))
    torch.testing.assert_close(back["pairs/gain"], -there["pairs/gain"], rtol=SAME, atol=SAME)
    torch.testing.assert_close(sign["pairs/gain"], -there["pairs/gain"], rtol=SAME, atol=SAME)


def test_a_pair_of_one_sample_twice_pulls_nowhere(trainer: Trainer) -> None:
    batch = pairs(trainer)
    _, _, gradient = learned(trainer, replace(batch, rejected=batch.chosen))
    _, _, scale = learned(trainer, batch)
    assert gradient.norm() <= SAME * scale.norm()


def test_at_the_reference_the_gradient_is_that_of_the_errors(trainer: Trainer) -> None:
    batch = pairs(trainer)
    _, _, gradient = learned(trainer, batch)
    expected = pull_of_the_errors(trainer, batch, 20.0 / 4 * batch.advantage)
    assert (gradient - expected).norm() <= SAME * expected.norm()


def test_best_and_worst_are_paired_and_ties_are_not() -> None:
    source = OnPolicyPairs(4, REWARD, group_size=3, margin=0.5)
    nan = float("nan")
    scores = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [nan, 0.0, 3.0], [nan, nan, 1.0]])
    best, worst, preferred = source._extremes(scores)
    assert best[:3].tolist() == [1, 3, 8]
    assert worst[0] == 0
    assert worst[2] == 7
    assert preferred.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_scores_nearer_than_the_margin_are_no_preference() -> None:
    _, _, preferred = OnPolicyPairs(1, REWARD, group_size=2, margin=0.5)._extremes(torch.tensor([[0.0, 0.4]]))
    assert preferred.tolist() == [0.0]


def test_it_moves_the_mass_to_the_preferred_spot(folder: Path) -> None:
    source = OnPolicyPairs(32, REWARD, group_size=4)
    made = trainer_of(toy_run(folder, source, DPO(beta=2.0, points=2), STEPS, optimizer=Optimizer(learning_rate=2e-3)))
    lines = fit(made)
    made.runtime.close()
    first, last = (sum(line["reward/mean"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
    assert last - first >= RISE


def test_ipo_stands_still_at_the_gain_it_aims_at_and_pulls_back_beyond() -> None:
    one = torch.ones(3)
    gain = torch.tensor([0.0, 1 / 200, 1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(IPO(beta=100.0).of_gain(gain, one).sum(), gain)
    assert slope[0] < 0
    assert slope[1].abs() <= SAME
    assert slope[2] > 0


def test_rebel_costs_the_squared_difference_of_rewards_at_the_start_and_nothing_where_it_is_explained() -> None:
    difference = torch.tensor([0.5, -2.0])
    rebel = REBEL(eta=0.1)
    torch.testing.assert_close(rebel.of_gain(torch.zeros(2), difference), difference.square())
    assert rebel.of_gain(0.1 * difference, difference).abs().max() <= SAME
    # Both sides swapped, and with them the sign of both: the same loss.
    gain = torch.tensor([0.3, 0.2])
    torch.testing.assert_close(rebel.of_gain(gain, difference), rebel.of_gain(-gain, -difference))


@pytest.mark.parametrize("eta", [0.1, 2.0])
def test_where_the_pairs_were_sampled_rebel_pulls_by_the_difference_of_rewards(trainer: Trainer, eta: float) -> None:
    """Its gradient is -(2 / eta) dr (grad l(chosen) - grad l(rejected)), with minus the error for l."""
    move(trainer)  # away from the reference
    trainer.policy.weights.keep("behaviour")
    batch = pairs(trainer)
    difference = torch.randn(len(batch))
    losses, _, gradient = learned(trainer, replace(batch, advantage=difference), REBEL(eta=eta))
    expected = pull_of_the_errors(trainer, batch, 2 / eta * difference)
    torch.testing.assert_close(losses, difference.square())
    assert (gradient - expected).norm() <= SAME * expected.norm()


def test_on_one_pair_rebel_pulls_as_credit_does(trainer: Trainer) -> None:
    """A group of two has credit of +-1 / sqrt(2), whatever its rewards: the same direction, of another length."""
    trainer.policy.weights.keep("behaviour")
    pair = pairs(trainer)[torch.tensor([0])]
    rewards, group = torch.tensor([0.3, -0.1]), torch.zeros(2, dtype=torch.int64)
    credit = GroupNorm()(Rewards(rewards), group)
    x0 = torch.cat([pair.chosen, pair.rejected])
    both = Samples(2 * pair.prompts, pair.seeds.expand(2), group, pair.chunk.expand(2), x0, credit)
    _, _, of_credit = learned(trainer, both, WeightedMatching())
    _, _, of_rebel = learned(trainer, replace(pair, advantage=rewards[:1] - rewards[1:]), REBEL())
    assert torch.cosine_similarity(of_rebel, of_credit, dim=0).item() == pytest.approx(1.0, abs=SAME)


def test_what_explains_all_differences_of_rewards_to_rebel_is_the_tilted_policy() -> None:
    """With log rho of a few actions for the gain, the least loss is at pi ~ pi_old exp(eta r)."""
    old, reward = torch.randn(2, 5, dtype=torch.float64)
    logits, rebel = old.clone().requires_grad_(), REBEL(eta=0.7)
    x, y = torch.combinations(torch.arange(5)).unbind(dim=1)
    solver = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)

    def loss() -> Tensor:
        solver.zero_grad()
        log_rho = logits.log_softmax(0) - old.log_softmax(0)
        cost = rebel.of_gain(log_rho[x] - log_rho[y], reward[x] - reward[y]).sum()
        cost.backward()
        return cost

    solver.step(loss)
    tilted = old.softmax(0) * (0.7 * reward).exp()
    tilted = tilted / tilted.sum()
    assert (tilted - old.softmax(0)).abs().max() > 0.1
    torch.testing.assert_close(logits.softmax(0).detach(), tilted, rtol=0, atol=SOLVED)


def test_a_preference_may_weigh_the_difference_of_scores() -> None:
    source = OnPolicyPairs(1, REWARD, group_size=3, strength="difference")
    _, _, weight = source._extremes(torch.tensor([[0.5, 2.0, 1.0], [1.0, 1.0, 1.0]]))
    assert weight.tolist() == [1.5, 0.0]


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"points": 0}])
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        DPO(**wrong)


def test_the_change_of_an_error_does_not_drown_in_the_error() -> None:
    generator = torch.Generator().manual_seed(0)
    frozen, target = (torch.randn(2, 4096, generator=generator) for _ in range(2))
    model_output = frozen + 1e-5 * torch.randn(2, 4096, generator=generator)
    exact = mean_square(model_output.double() - target.double()) - mean_square(frozen.double() - target.double())
    found = error_change(model_output, frozen, target)
    # v - f is exact in float32; then each term is rounded by 1e-7, of terms that cancel to a fiftieth of their size.
    assert found.double().numpy() == pytest.approx(exact.numpy(), rel=1e-4)
    assert error_change(frozen, frozen, target).eq(0).all()
