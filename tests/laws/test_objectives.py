"""What every objective keeps, through the whole machinery on the toy pipeline; a new file needs no line here.

Laws that only one objective has are in tests/alignment/objectives/test_objectives.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.config import registry
from alignment.context import Context
from alignment.credit.backbones.saliency import Saliency
from alignment.credit.structures.perceptual import Perceptual
from alignment.data.batches import Batch, Pairs, Samples, Starts, Transitions
from alignment.objectives.base import Loss, Objective
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.prompts_only import PromptsOnly
from alignment.training.loop import Trainer, microbatches, rows_per_unit
from reward_models.measures.colour import Colour
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from tests.support.toy import REWARD, saved, toy_run, trainer_of

KINDS = [registry.find(Objective, name) for name in registry.known(Objective)]
SOURCES = {  # one for each batch type that an objective may consume
    Starts: PromptsOnly(4, Colour(), group_size=4),
    Samples: OnPolicy(4, REWARD, group_size=4),
    Pairs: OnPolicyPairs(4, REWARD, group_size=4),
    Transitions: OnPolicySteps(4, REWARD, FlowSDE(), All(), group_size=4, shared_noise=False),
}
# To which of them a law applies is read off the class.
CREDITED = [kind for kind in KINDS if kind.consumes is not Starts]
SIGNED = [kind for kind in CREDITED if kind.signed]
HELD = [kind for kind in CREDITED if "kl" in kind.__dataclass_fields__]

SAME = 1e-5  # relative: float32 sums in another order
BETA = 5.0
"""Of objectives with a sigmoid: theirs, a thousand and more, multiply what processors round differently by as much."""
NOTHING = 1e-5  # of the gradient with credit: what cancels in exact arithmetic leaves this much in float32


@dataclass
class Bench:
    """An objective with a batch to learn from."""

    trainer: Trainer
    objective: Objective[Batch]
    ctx: Context
    batch: Batch

    def losses(self, batch: Batch, objective: Objective[Batch] | None = None) -> Tensor:
        """Return each row's loss, summed over its passes, and leave its gradient."""
        rows: list[Tensor] = []

        def learn(loss: Loss) -> None:
            assert loss.per_row.dtype == torch.float32
            assert not any(metric.requires_grad for metric in loss.metrics.values())
            loss.per_row.sum().backward()
            rows.append(loss.per_row.detach())

        (objective or self.objective)(self.ctx, batch, learn)
        return torch.stack(rows).sum(dim=0)

    def gradient(self, batch: Batch, objective: Objective[Batch] | None = None) -> Tensor:
        """Return the gradient of the summed loss, one vector."""
        self.losses(batch, objective)
        return self.take()

    def take(self) -> Tensor:
        parameters = self.trainer.policy.trainable.values()
        taken = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        self.trainer.runtime.optimizer.zero_grad()
        return taken

    def move(self, size: float = 0.01) -> None:
        """Put the live weights elsewhere than those that sampled."""
        with torch.no_grad():
            for p in self.trainer.policy.trainable.values():
                p += size * torch.randn(p.shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def made(request: pytest.FixtureRequest, folder: Path) -> Iterator[Bench]:
    objective = gentle(without_kl(request.param()))
    source = SOURCES[objective.consumes]
    trainer = trainer_of(toy_run(folder, mapping(source) if objective.spatial else source, objective, 1))
    for name in ("behaviour", "reference"):
        trainer.policy.weights.keep(name)
    ctx = trainer.context(0)
    batch = trainer.experience(ctx).batch
    yield Bench(trainer, objective, ctx, mapped(batch) if objective.spatial else batch)
    trainer.runtime.close()


@pytest.fixture
def bench(made: Bench) -> Iterator[Bench]:
    """Return the bench of an objective as it was made, whatever laws moved on it before."""
    policy = made.trainer.policy
    weights = {name: p.detach().clone() for name, p in policy.trainable.items()}
    copies = {copy: {name: z.clone() for name, z in kept.items()} for copy, kept in policy.snapshots.items()}
    yield made
    with torch.no_grad():
        for name, p in policy.trainable.items():
            p.copy_(weights[name])
    policy.snapshots.update(copies)
    made.trainer.runtime.optimizer.zero_grad()


def of_those(kinds: list[type[Objective[Batch]]]) -> pytest.MarkDecorator:
    """Return the mark of a law that some of the objectives keep."""
    return pytest.mark.parametrize("made", kinds, ids=lambda kind: kind.__name__, indirect=True)


def without_kl(objective: Objective[Batch], kl: float = 0.0) -> Objective[Batch]:
    named = {field.name for field in fields(objective)}
    return replace(objective, **({"kl": kl} if "kl" in named else {}))


def gentle(objective: Objective[Batch]) -> Objective[Batch]:
    steep = "beta" in {field.name for field in fields(objective)}
    return replace(objective, **({"beta": BETA} if steep else {}))


def mapping(source: Source) -> Source:
    return replace(source, structure=Perceptual(Saliency()))


def mapped(batch: Batch) -> Batch:
    """Return a batch whose credit differs from one number of a point to the other, which its one pixel cannot tell."""
    assert batch.advantage.shape[2:] == (1,)
    drawn = torch.rand(len(batch), 1, 2, generator=torch.Generator().manual_seed(0))
    return replace(batch, advantage=batch.advantage * drawn)


def credited(batch: Batch, factor: float) -> Batch:
    return replace(batch, advantage=factor * batch.advantage)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_loss_is_read_in_three_files(kind: type[Objective[Batch]]) -> None:
    """Its own, its family's with at most two classes, and that of what all objectives are."""
    ladder = [base for base in kind.__mro__ if Objective in base.__mro__]
    assert len(ladder) <= 4
    assert len({base.__module__ for base in ladder}) <= 3


def test_its_headline_is_among_its_metrics(bench: Bench) -> None:
    told: set[str] = {"reward/mean"}  # the source's

    def learn(loss: Loss) -> None:
        loss.per_row.sum().backward()
        told.update(loss.metrics)

    bench.objective(bench.ctx, bench.batch, learn)
    assert bench.objective.headline in told


@of_those(SIGNED)
def test_zero_credit_gives_zero_gradient(bench: Bench) -> None:
    assert bench.gradient(bench.batch).norm() > 0
    scale = bench.gradient(bench.batch).norm()
    assert bench.gradient(credited(bench.batch, 0.0)).norm() <= NOTHING * scale


@of_those(CREDITED)
def test_flipping_the_credit_flips_the_gradient(bench: Bench) -> None:
    there, back = (bench.gradient(credited(bench.batch, sign)) for sign in (1.0, -1.0))
    if bench.objective.signed:
        assert (there + back).norm() <= NOTHING * there.norm()
    else:  # credit that weighs has no opposite, but what it prefers has
        none = bench.gradient(credited(bench.batch, 0.0))
        assert (there - none) @ (back - none) < 0


def test_the_order_of_rows_does_not_matter(bench: Bench) -> None:
    bench.move()
    order = torch.randperm(len(bench.batch))
    straight = bench.losses(bench.batch)
    expected = bench.take()
    shuffled = bench.losses(bench.batch[order])
    torch.testing.assert_close(shuffled, straight[order], rtol=SAME, atol=SAME * straight.abs().max().item())
    assert (bench.take() - expected).norm() <= SAME * expected.norm()


@pytest.mark.parametrize("size", [1, 3, 16])
def test_microbatches_add_up(bench: Bench, size: int) -> None:
    bench.move()
    whole = bench.gradient(bench.batch)
    unit = rows_per_unit(bench.objective, bench.batch)
    for rows in microbatches(bench.batch, torch.arange(len(bench.batch)), size, unit):
        bench.losses(bench.batch[rows])
    assert (bench.take() - whole).norm() <= SAME * whole.norm()


@of_those(HELD)
def test_the_distance_to_the_reference_has_a_gradient_of_its_own(bench: Bench) -> None:
    held = without_kl(bench.objective, kl=1.0)
    bench.move()
    free, held_gradient = bench.gradient(bench.batch), bench.gradient(bench.batch, held)
    assert (held_gradient - free).norm() > 0
    # The pull grows with the weight and does not depend on the credit.
    nothing = credited(bench.batch, 0.0)
    pull = bench.gradient(nothing, held) - bench.gradient(nothing)
    torch.testing.assert_close(held_gradient - free, pull, rtol=0, atol=NOTHING * float(free.norm() + pull.norm()))


def test_it_reads_only_the_copies_it_names(bench: Bench) -> None:
    held = without_kl(bench.objective, kl=1.0)
    for name in {"behaviour", "reference"} - set(held.snapshots):
        del bench.trainer.policy.snapshots[name]
    assert bench.losses(bench.batch, held).isfinite().all()


def test_learning_leaves_live_weights_and_copies_in_place(bench: Bench) -> None:
    bench.move()
    policy = bench.trainer.policy
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    copies = {copy: {name: z.clone() for name, z in kept.items()} for copy, kept in policy.snapshots.items()}
    bench.losses(bench.batch, without_kl(bench.objective, kl=1.0))
    assert all(torch.equal(before[name], p) for name, p in policy.trainable.items())
    assert all(
        torch.equal(copies[copy][name], z) for copy, kept in policy.snapshots.items() for name, z in kept.items()
    )
