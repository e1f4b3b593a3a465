"""`visalign doctor --shuffle`: how much learning rate does pure noise tolerate?

Two short trainings start from the same weights, prompts and seeds, at the config's peak learning rate. One learns from
the real advantages, the other from the same numbers shuffled within each group: all scale, no meaning. What the second
one loses on held-out prompts is what noise alone does to the policy at this rate; it is a random walk, so it grows with
the number of updates and with the square of the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from alignment.credit.advantages.base import Advantage
from alignment.data.batches import Batch, Experience
from alignment.data.prompts import Prompts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, NumericsError
from alignment.preflight.doctor.subject import exchanged, preserved
from alignment.reports.console import Console
from alignment.reports.run_folder import Evaluated
from alignment.reports.statistics import Interval, difference, interval
from alignment.training.evaluation import Evaluator
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import learning_rate
from reward_models.base import RewardError, Rewards

STEPS = 20
"""Steps of each training by default."""
BEFORE, REAL, SHUFFLED = "before", "real", "shuffled"


@dataclass(frozen=True)
class Shuffled(Advantage):
    """Another advantage's numbers, each group's dealt out anew among its samples.

    Attributes:
        inner: Whose numbers.
        draw: The run's random streams; each group has its own.
    """

    inner: Advantage
    draw: Draw

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32: the values of each group are those of `inner`, in a random order."""
        dealt = self.inner(rewards, group).clone()
        for identity in group.unique().tolist():
            rows = (group == identity).nonzero().flatten()
            order = torch.randperm(len(rows), generator=self.draw.generator("shuffled advantages", identity))
            dealt[rows] = dealt[rows[order]]
        return dealt


@dataclass(frozen=True)
class Arm:
    """One of the two trainings.

    Attributes:
        curve: Mean reward of each step's samples.
        after: The evaluation at its end.
    """

    curve: tuple[float, ...]
    after: Evaluated


@dataclass(frozen=True)
class Damage:
    """The measurement of a run.

    Attributes:
        run: Its name.
        rate: The learning rate of both trainings.
        updates: Updates of each.
        whole: Updates of the run itself, each counted by the square of its rate over the peak: what noise adds up over.
        before: The evaluation at the start.
        arms: "real" and "shuffled".
    """

    run: str
    rate: float
    updates: int
    whole: float
    before: Evaluated
    arms: Mapping[str, Arm]

    def change(self, arm: str, metric: str = "reward") -> Interval:
        """Return the held-out change of one training, picture by picture, with its 95 % interval."""
        scores = (self.before.scores[metric].tolist(), self.arms[arm].after.scores[metric].tolist())
        return difference(*scores, self.before.prompts)

    @property
    def too_high(self) -> bool:
        """Whether noise does damage beyond doubt that learning does not make good."""
        return self.change(SHUFFLED).high < 0 and not self.change(REAL).low > 0

    @property
    def verdict(self) -> str:
        """What the rate is worth, as far as this can say."""
        noise, real = self.change(SHUFFLED), self.change(REAL)
        cost = f"noise alone costs {noise.mean:+.3f} in {self.updates} updates"
        walk = f"a random walk over the whole run comes to about {noise.mean * self.whole / self.updates:+.3f}"
        half = "half the rate does a quarter of it"
        if self.too_high:
            return f"{self.rate:g} is too high: {cost}, and learning does not make it good; {half}"
        if noise.high < 0:
            return f"{self.rate:g} learns, but {cost}; {walk}, and {half}"
        if real.low > 0:
            return f"{self.rate:g} is tolerated: learning shows ({real.mean:+.3f}), and damage by noise does not"
        return (
            f"at {self.rate:g} neither damage by noise nor learning shows in {self.updates} updates and "
            f"{len(self.before.prompts)} pictures: measure longer (steps=N), or on more pictures"
        )

    def show(self, console: Console) -> None:
        """Print the table and the verdict."""
        title = f"{self.run}: {self.updates} updates at {self.rate:g}, {len(self.before.prompts)} held-out pictures"
        table = Table(title=title, title_justify="left", box=None)
        for heading in ("metric", "before", "real advantages", "change", "shuffled advantages", "change"):
            table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=True)
        for metric, ends in self._ends().items():
            cells = [f"{ends[BEFORE].mean:.3f}"]
            for arm in (REAL, SHUFFLED):
                change = self.change(arm, metric)
                cells += [f"{ends[arm].mean:.3f}", f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"]
            table.add_row(metric, *cells)
        console.print(table)
        console.print(self.verdict, markup=False)

    def _ends(self) -> dict[str, dict[str, Interval]]:
        """Return each metric's mean before and after either training."""
        evaluated = {BEFORE: self.before, **{name: arm.after for name, arm in self.arms.items()}}
        return {
            metric: {name: interval(e.scores[metric].tolist(), e.prompts) for name, e in evaluated.items()}
            for metric in self.before.scores
        }

    def save(self, folder: Path) -> dict[str, object]:
        """Write `shuffle.png` into `folder` and return everything as JSON can hold it."""
        path, ends = folder / "shuffle.png", self._ends()
        curves = {name: arm.curve for name, arm in self.arms.items()}
        changes = {name: self.change(name) for name in self.arms}
        from alignment.preflight.doctor import figures as doctor_figures  # matplotlib takes a second to import

        doctor_figures.damage(path, curves, changes, f"{self.updates} updates at {self.rate:g}")
        held_out = {
            metric: {name: asdict(end) for name, end in found.items()}
            | {f"change_{arm}": asdict(self.change(arm, metric)) for arm in self.arms}
            for metric, found in ends.items()
        }
        return {
            "learning_rate": self.rate,
            "updates": self.updates,
            "held_out": held_out,
            "training": curves,
            "too_high": self.too_high,
            "verdict": self.verdict,
            "picture": str(path),
        }


def measure(trainer: Trainer, steps: int | None) -> Damage:
    """Train twice and compare; the policy is left as it was, bit for bit, and the run's folder is not touched.

    The live weights are evaluated, not their average, which lags behind so short a training. Without held-out prompts
    the training prompts stand in.

    Args:
        trainer: A loaded run.
        steps: Steps of each training; null takes 20.

    Raises:
        ConfigError: If the run's source gives no credit that could be shuffled.
    """
    run, count = trainer.run, steps or STEPS
    advantage = run.source.advantage
    if advantage is None:
        raise ConfigError(f"--shuffle: {type(run.source).__name__} has no advantage that could be shuffled")
    advantages = {REAL: advantage, SHUFFLED: Shuffled(advantage, Draw(run.seed))}
    evaluator = _evaluator(trainer)
    before = evaluator(trainer.context(0), run.evaluation.curve_images_per_prompt, "live")
    arms: dict[str, Arm] = {}
    for name, credit in advantages.items():
        source = exchanged(run.source, advantage, credit)
        optimizer = replace(run.optimizer, warmup=0, final=1.0)
        arm = replace(trainer, run=replace(run, source=source, optimizer=optimizer, steps=count))
        arms[name] = _train(arm, evaluator)
    rates = [learning_rate(run.optimizer, step, run.steps) / run.optimizer.learning_rate for step in range(run.steps)]
    whole = run.batch.updates * sum(rate**2 for rate in rates)
    return Damage(run.name, run.optimizer.learning_rate, count * run.batch.updates, whole, before, arms)


def _train(trainer: Trainer, evaluator: Evaluator) -> Arm:
    """Train, evaluate, and put everything back."""
    curve: list[float] = []

    def note(step: int, experience: Experience[Batch], metrics: Mapping[str, float]) -> None:
        curve.append(experience.rewards.value.nanmean().item())

    policy, run = trainer.policy, trainer.run
    try:
        with preserved(policy):
            trainer.runtime.attach(policy, run.optimizer)
            trainer.fit(0, note)
            after = evaluator(trainer.context(0), run.evaluation.curve_images_per_prompt, "live")
    except (NumericsError, RewardError) as error:
        rate = run.optimizer.learning_rate
        raise NumericsError(
            f"--shuffle: at optimizer.learning_rate {rate:g} the policy broke down after {len(curve)} steps ({error}); "
            "lower the rate"
        ) from error
    trainer.runtime.attach(policy, run.optimizer)
    return Arm(tuple(curve), after)


def _evaluator(trainer: Trainer) -> Evaluator:
    settings = trainer.run.evaluation
    prompts = trainer.prompts if trainer.held_out is None else trainer.held_out
    assert trainer.run.measure is not None  # what has an advantage has a reward
    return Evaluator(settings, _distinct(prompts.texts), trainer.run.measure)


def _distinct(texts: Sequence[str]) -> Prompts:
    return Prompts(tuple(dict.fromkeys(texts)))
