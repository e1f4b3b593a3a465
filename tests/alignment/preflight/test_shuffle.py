"""Shuffled advantages: what is shuffled, that nothing else differs, and that too high a rate is found."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.cli import main as cli
from alignment.config.run import Evaluation, Optimizer
from alignment.context import Context
from alignment.credit.advantages.batch_norm import BatchNorm
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Experience, Groups, Transitions
from alignment.data.random_streams import Draw
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.preflight.doctor import shuffle
from alignment.reports.run_folder import Evaluated
from alignment.sources.base import Source
from alignment.sources.on_policy_steps import OnPolicySteps
from reward_models.base import Media, Rewards
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.branch import Branch
from tests.alignment.preflight.test_snr import RUN
from tests.support.toy import REWARD, saved, toy_run, trainer_of

SOURCE = OnPolicySteps(8, REWARD, FlowSDE(), Branch((0, 3)), group_size=16)
SURROGATE = ClippedSurrogate(clip=0.5, weight="equal")
EVALUATION = Evaluation(curve_images_per_prompt=32, grid=4)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(0, 100))
def test_each_group_keeps_its_values(groups: list[int], seed: int) -> None:
    group = torch.tensor(groups) * 7
    rewards = Rewards(torch.randn(len(group), generator=torch.Generator().manual_seed(seed)))
    real = GroupNorm()(rewards, group)
    dealt = shuffle.Shuffled(GroupNorm(), Draw(seed))(rewards, group)
    for identity in group.unique():
        assert dealt[group == identity].sort().values.equal(real[group == identity].sort().values)


def test_the_order_is_another_in_every_group_and_the_same_every_time() -> None:
    group = torch.arange(3).repeat_interleave(50)
    rewards = Rewards(torch.arange(50.0).repeat(3))
    deal = shuffle.Shuffled(BatchNorm(), Draw(0))
    first, second, third = deal(rewards, group).split(50)
    assert not any(a.equal(b) for a, b in [(first, second), (second, third), (first, third)])
    assert deal(rewards, group).equal(deal(rewards, group))
    # 150 pairs that agree by chance only: a correlation beyond four standard errors is no chance.
    assert abs(torch.corrcoef(torch.stack([deal(rewards, group), BatchNorm()(rewards, group)]))[0, 1]) < 4 / 150**0.5


@dataclass(frozen=True)
class Creditless(Source[Transitions]):
    """A source of transitions without credit."""

    prompts: int = 2
    produces: ClassVar[type] = Transitions

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Transitions]:
        raise AssertionError("it is refused before it is asked")


# ---- on runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=400)


def measured(folder: Path, rate: float, steps: int) -> tuple[shuffle.Damage, bool]:
    run = toy_run(folder, SOURCE, SURROGATE, 40, optimizer=Optimizer(rate, warmup=10, final=0.0), evaluation=EVALUATION)
    trainer = trainer_of(run)
    before = {name: p.detach().clone() for name, p in trainer.policy.trainable.items()}
    found = shuffle.measure(trainer, steps)
    same = all(torch.equal(before[name], p) for name, p in trainer.policy.trainable.items())
    trainer.runtime.close()
    return found, same


def test_a_rate_that_learns_is_told_from_one_that_destroys(folder: Path) -> None:
    good, untouched = measured(folder, 2e-3, 15)
    assert untouched
    assert good.change("real").low > 0
    assert good.change("shuffled").high < good.change("real").low
    assert not good.too_high
    bad, untouched = measured(folder, 0.1, 6)
    assert untouched
    assert bad.change("shuffled").high < 0
    assert bad.too_high
    assert "too high" in bad.verdict


def test_a_policy_that_breaks_down_is_said_to(folder: Path) -> None:
    with pytest.raises(shuffle.NumericsError, match="learning_rate 1000 the policy broke down after"):
        measured(folder, 1000.0, 6)


def test_both_start_alike_and_only_credit_differs(folder: Path) -> None:
    found, _ = measured(folder, 1e-3, 3)
    real, shuffled = found.arms["real"].curve, found.arms["shuffled"].curve
    assert len(real) == len(shuffled) == 3
    assert real[0] == shuffled[0]
    assert real[1:] != shuffled[1:]
    # The peak rate throughout, and the whole run's updates by the square of their rate: a warm-up and a line to zero.
    assert found.rate == 1e-3
    assert 0 < found.whole < 40 / 3


def test_the_verdict_claims_no_more_than_was_seen() -> None:
    def evaluated(shift: float) -> Evaluated:
        scores = torch.linspace(0, 1, 40) + shift * torch.linspace(-1, 3, 40)
        texts = tuple(f"prompt {i}" for i in range(40))
        return Evaluated(texts, torch.arange(40), {"reward": scores}, Media(torch.zeros(1, 1, 3, 2, 2)))

    def verdict(real: float, shuffled: float) -> str:
        arms = {
            "real": shuffle.Arm((0.0,), evaluated(real)),
            "shuffled": shuffle.Arm((0.0,), evaluated(shuffled)),
        }
        return shuffle.Damage("run", 1e-4, 10, 100.0, evaluated(0), arms).verdict

    assert "neither damage" in verdict(0.0, 0.0)
    assert "tolerated" in verdict(0.1, 0.0)
    assert "learns, but noise alone costs -0.100" in verdict(0.1, -0.1)
    assert "comes to about -1.000" in verdict(0.1, -0.1)
    assert "too high" in verdict(0.0, -0.1)


def test_a_source_without_credit_is_refused(folder: Path) -> None:
    trainer = trainer_of(toy_run(folder, SOURCE, SURROGATE, 3))
    with pytest.raises(shuffle.ConfigError, match="no advantage"):
        shuffle.measure(replace(trainer, run=replace(trainer.run, source=Creditless())), 2)
    trainer.runtime.close()


def test_the_command_prints_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(folder=folder, out=tmp_path / "runs"))
    words = ["doctor", str(tmp_path / "run.yaml"), "--shuffle", "steps=2"]
    assert cli.run(words) == 0
    assert "2 updates" in capsys.readouterr().out
    assert cli.run([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["shuffle"]
    assert said["updates"] == 2
    assert {"before", "real", "shuffled", "change_real", "change_shuffled"} == said["held_out"]["reward"].keys()
    picture = tmp_path / "runs" / "toy.doctor" / "shuffle.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs" / "toy").exists()
