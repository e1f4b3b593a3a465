"""What sources say of themselves, and that whoever asks goes by nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from alignment.config import checks, registry
from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.credit.advantages.weighted import Weighted
from alignment.data.batches import Batch, Experience, Groups, Samples
from alignment.errors import ConfigError
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.forward_process.adpo import ADPO
from alignment.objectives.forward_process.sft import SFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.seppo import SePPO
from alignment.preflight.doctor.subject import exchanged
from alignment.sources.base import Source, StepShape
from alignment.sources.offline import Offline
from alignment.sources.offline_groups import OfflineGroups
from alignment.sources.offline_pairs import OfflinePairs
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.on_policy_tree import OnPolicyTree
from alignment.sources.prompts_only import PromptsOnly
from alignment.sources.semi_policy import SemiPolicy
from reward_models.base import RewardModel
from reward_models.measures.colour import Colour
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.branch import Branch
from samplers.windows.random import Random
from tests.support.toy import REWARD, labelled, pairs, saved, toy_run, trainer_of

STEPS = OnPolicySteps(4, REWARD, FlowSDE(), Random(2), group_size=4)
MADE = {
    "samples": (OnPolicy(4, REWARD, group_size=4), SFT()),
    "the ends": (OnPolicy(4, REWARD, group_size=4, keep=2, prompts_per_call=2), SFT()),
    "pairs": (OnPolicyPairs(4, REWARD, group_size=4), DPO()),
    "steps": (STEPS, ClippedSurrogate()),
    "the ends of steps": (dataclasses.replace(STEPS, keep=2), ClippedSurrogate()),
    "branches": (dataclasses.replace(STEPS, window=Branch((0, 1)), prompts_per_call=1), ClippedSurrogate()),
    "a tree": (OnPolicyTree(4, FlowSDE(), REWARD, splits=(0, 2)), ClippedSurrogate()),
    "starts": (PromptsOnly(4, Colour(), group_size=2), DRaFT()),
}


@dataclass(frozen=True)
class Renamed(Source[Samples]):
    """A source of somebody else, whose fields have names of their own."""

    prompts: int
    scorer: RewardModel
    samples: int = 4
    at_once: int | None = None
    credit: Advantage = GroupNorm()
    produces: ClassVar[type[Batch]] = Samples

    @property
    def reward(self) -> RewardModel:
        return self.scorer

    @property
    def advantage(self) -> Advantage:
        return self.credit

    def shape(self, rounds: int | None) -> StepShape:
        calls = None if self.at_once is None else self.prompts // self.at_once
        return StepShape(self.prompts, self.samples, self.prompts * self.samples, calls)

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Samples]:
        same = OnPolicy(self.prompts, self.scorer, self.samples, self.credit, prompts_per_call=self.at_once)
        return same(ctx, groups)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=1)


def test_every_source_says_how_large_its_step_is(folder: Path) -> None:
    read = {
        "records": (Offline(4), SFT(), labelled(folder, count=8)),
        "records of a group": (Offline(4, rows_per_group=2), ADPO(), labelled(folder, count=8)),
        "pairs of a file": (OfflinePairs(4), DPO(), pairs(folder, count=8)),
        "groups of a file": (OfflineGroups(4), ADPO(), pairs(folder, count=8)),
        "winners": (SemiPolicy(4, kept=2), SePPO(), labelled(folder, wanted=True, count=8)),
    }
    made = {name: (*whole, str(folder / "prompts.txt")) for name, whole in MADE.items()}
    tried: set[type] = set()
    for name, (source, objective, file) in {**made, **read}.items():
        run = toy_run(folder, source, objective, 1)
        trainer = trainer_of(dataclasses.replace(run, data=dataclasses.replace(run.data, prompts=file, dedupe="keep")))
        shape, batch = source.shape(trainer.policy.rounds), trainer.experience(trainer.context(0)).batch
        trainer.runtime.close()
        assert (shape.rows, shape.groups) == (len(batch), len(batch.group.unique())), name
        assert source.shape(None) == shape, name
        tried.add(type(source))
    assert tried == {registry.find(Source, name) for name in registry.known(Source)}  # a new source needs a line here


def test_what_a_field_does_not_say_has_an_answer_for_all() -> None:
    offline = Offline(4)
    facts = (offline.reward, offline.advantage, offline.structure, offline.dynamics, offline.window, offline.weights)
    assert facts == (None, None, None, None, None, "live")
    assert (STEPS.reward, STEPS.window, SemiPolicy(4).weights) == (REWARD, Random(2), "opponent")
    assert (DPO().clip, DPO().kl, SFT().channels, DRaFT().times) == (None, 0.0, "mean", None)


def test_a_required_field_stays_required_though_its_name_is_a_fact() -> None:
    with pytest.raises(TypeError, match="reward"):
        OnPolicy(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        STEPS.reward = Colour()


@pytest.mark.parametrize(
    ("source", "objective", "settings", "says"),
    [
        (Renamed(4, REWARD, samples=3), SFT(), {"updates": 5}, "12 rows per step do not divide into 5"),
        (Renamed(4, REWARD, samples=6), ADPO(), {"microbatch": 4}, "compares the 6 samples of a group"),
        (Renamed(4, REWARD, samples=1), ADPO(), {}, "a group of one has none to compare"),
        (Renamed(6, REWARD, at_once=2), SFT(), {}, "2 prompts per pipeline call do not divide the 3 prompts of each"),
        (Renamed(4, Colour(), credit=Weighted({"b": 1.0})), SFT(), {}, "reads the part 'b' of the reward"),
        (OnPolicyPairs(4, REWARD, group_size=4), DPO(), {"updates": 8}, "4 rows per step do not divide into 8"),
    ],
)
def test_a_source_is_checked_by_what_it_says_not_by_its_fields(
    folder: Path, source: Source[Batch], objective: object, settings: dict[str, int], says: str
) -> None:
    run = toy_run(folder, source, objective, 1)
    run = dataclasses.replace(run, batch=dataclasses.replace(run.batch, **settings))
    with pytest.raises(ConfigError) as caught:
        checks.check(run, 2)
    assert says in str(caught.value)


def test_a_part_is_exchanged_whatever_its_field_is_called() -> None:
    source = Renamed(4, REWARD)
    other = Weighted({"b": 1.0})
    assert exchanged(source, source.advantage, other) == Renamed(4, REWARD, credit=other)
    with pytest.raises(ConfigError, match="Renamed has no field that holds its Random"):
        exchanged(source, Random(2), Random(3))
