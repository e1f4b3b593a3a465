"""`visalign doctor --snr`: which steps hold signal?

The policy stands still while M batches of experience are made, each of the run's own size. With g_i the gradient of
batch i, ||E g||^2 is estimated without bias by the mean of g_i . g_j over i != j, and what one batch adds to it as
noise is the rest of the mean of ||g_i||^2. Their ratio is the power signal-to-noise ratio of one batch:

    SNR = U / (mean ||g_i||^2 - U),   U = sum_{i != j} g_i . g_j / (M (M - 1))

The share of a gradient's power that is signal, U / mean ||g_i||^2 = SNR / (1 + SNR), is about the squared cosine
between it and the true gradient. Its standard error is the jackknife's over batches (which gives twice the variance
where there is no signal, and so errs towards doubt); that of the SNR follows from it. A step whose share is not above
two standard errors adds noise to every update and, as far as this measurement sees, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from alignment.data.batches import Batch, Experience, Transitions
from alignment.errors import ConfigError
from alignment.preflight.doctor.subject import exchanged, gradient, group_std
from alignment.reports.console import Console
from alignment.training.loop import Trainer
from samplers import observe_prefix
from samplers.dynamics.base import Dynamics
from samplers.paths.times import Times
from samplers.windows.branch import Branch

BATCHES, LEAST = 8, 3
"""Batches a step by default, and the fewest that have a jackknife."""
ERRORS = 2.0
"""Standard errors a share must be above to be called a signal."""
PURE = 1 - 1e-9
"""The largest share: gradients that are all the same."""
BANDS = 4
"""Bands of time that a forward-process objective is looked at in."""
BY_STEP = ("index", "x", "x_next", "model_output", "coefficients")
"""What transitions hold for each step."""
CHUNK = 2**20
"""Elements of gradients taken to float64 at once."""


@dataclass(frozen=True)
class StepSignal:
    """What one step's gradient is made of.

    Attributes:
        name: The step, "0" the first; a band of times; or "all" for the update as the config makes it.
        sigma: Noise level at the step; NaN for "all".
        std: Standard deviation of its noise; NaN for "all".
        group_std: Mean standard deviation of the reward within a group.
        tied: Share of groups whose samples all have the same reward.
        share: Share of one batch's gradient power that is signal; an estimate, so it may be below 0.
        share_error: Its standard error.
        batches: Batches it was measured on.
    """

    name: str
    sigma: float
    std: float
    group_std: float
    tied: float
    share: float
    share_error: float
    batches: int

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of one batch's gradient."""
        return self.share / (1 - self.share)

    @property
    def error(self) -> float:
        """Standard error of the ratio."""
        return self.share_error / (1 - self.share) ** 2

    @property
    def label(self) -> str:
        """What its bar is called."""
        level = "" if math.isnan(self.std) else f"\nsigma {self.sigma:.2f}"
        return ("step " if self.name.isdecimal() else "") + self.name + level

    @property
    def found(self) -> bool:
        """Whether there is a signal beyond doubt.

        Asked of the share, whose error is the same on both sides; for a small ratio it is the same question.
        """
        return self.share > ERRORS * self.share_error


@dataclass(frozen=True)
class Signal:
    """The measurement of a run.

    Attributes:
        run: Its name.
        samples: Samples in a batch.
        steps: One a step, and "all".
        branched: Whether each step was measured by branching there.
    """

    run: str
    samples: int
    steps: tuple[StepSignal, ...]
    branched: bool

    @property
    def advice(self) -> str:
        """What to train, as far as this can say."""
        single = [s for s in self.steps if s.name != "all"]
        if not single:
            return ""
        good = [s.name for s in single if s.found]
        if not good:
            return (
                f"no step's signal is above {ERRORS:g} standard errors, so nothing can be recommended: measure more "
                "batches (steps=N), or make them larger"
            )
        written = f" (source.window.steps=[{', '.join(good)}])" if self.branched else ""
        return (
            f"signal at {', '.join(good)}: train there{written}. Elsewhere none was found at this policy, which does "
            "not prove that there is none; measure more batches (steps=N) to be surer, and again once it has learned"
        )

    def show(self, console: Console) -> None:
        """Print the table and the advice."""
        title = f"{self.run}: signal in the gradient of {self.samples} samples"
        table = Table(title=title, title_justify="left", box=None)
        for heading in ("step", "sigma", "std", "reward std in group", "tied groups", "SNR", "+- SE", ""):
            table.add_column(heading, justify="right", no_wrap=True)
        for s in self.steps:
            level, std = ("" if math.isnan(number) else f"{number:.3f}" for number in (s.sigma, s.std))
            mark = "[green]signal[/]" if s.found else "[dim]none found[/]"
            ratio, error = f"{s.snr:.3f}", f"{s.error:.3f}"
            table.add_row(s.name, level, std, f"{s.group_std:.3f}", f"{s.tied:.0%}", ratio, error, mark)
        console.print(table)
        console.print(self.advice, markup=False)

    def save(self, folder: Path) -> dict[str, object]:
        """Write `snr.png` into `folder` and return everything as JSON can hold it."""
        path = folder / "snr.png"
        title = f"Where the signal is: {self.steps[0].batches} batches of {self.samples} samples"
        ratios = {s.label: (s.snr, s.error) for s in self.steps}
        from alignment.preflight.doctor import figures as doctor_figures  # matplotlib takes a second to import

        doctor_figures.signal(path, title, ratios, [s.found for s in self.steps])
        steps = [
            {key: None if value != value else value for key, value in asdict(s).items()}  # JSON has no NaN
            | {"snr": s.snr, "snr_error": s.error, "found": s.found}
            for s in self.steps
        ]
        return {"samples": self.samples, "steps": steps, "advice": self.advice, "picture": str(path)}


def measure(trainer: Trainer, batches: int | None) -> Signal:
    """Measure where the gradient of a run holds signal; the policy is left as it is.

    A run that branches is measured by branching at each step in turn, its own steps or not. Any other run is measured
    on its own experience: each trained step of its window alone, or, where it learns from clean samples, bands of time.

    Args:
        trainer: A loaded run.
        batches: Batches a step; null takes 8.

    Raises:
        ConfigError: If there are too few batches.
    """
    count = batches or BATCHES
    if count < LEAST:
        raise ConfigError(f"steps={count}: a standard error needs at least {LEAST} batches")
    window, dynamics = trainer.run.source.window, trainer.run.source.dynamics
    made = [trainer.experience(trainer.context(1 + i)) for i in range(count)]
    branched = isinstance(window, Branch)
    if dynamics is None:
        steps = list(_bands(trainer, made))
    else:
        steps = list(_branches(trainer, dynamics, count) if branched else _columns(trainer, dynamics, made))
    whole = _signal("all", [gradient(trainer, experience.batch) for experience in made], made)
    return Signal(trainer.run.name, len(made[0].media), (*steps, whole), branched)


def signal_share(gram: Tensor) -> tuple[float, float]:
    """Return the share of one gradient's power that is signal, and its standard error.

    Args:
        gram: `[M, M]` float64, the inner products of M independent gradients, M >= 3.
    """
    m = len(gram)
    rows = torch.arange(m)
    left_out = torch.stack([_share(gram[rows != i][:, rows != i]) for i in range(m)])
    spread = (left_out - left_out.mean()).square().sum() * (m - 1) / m
    return _share(gram).item(), spread.sqrt().item()


def _share(gram: Tensor) -> Tensor:
    m, power = len(gram), gram.diagonal().sum()
    signal = (gram.sum() - power) / (m * (m - 1))
    return (signal / (power / m)).clamp(max=PURE) if power > 0 else torch.zeros_like(power)


def inner_products(gradients: Sequence[Tensor]) -> Tensor:
    """Return the inner products `[M, M]` of M vectors, summed in float64."""
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for pieces in zip(*(g.split(CHUNK) for g in gradients), strict=True):
        part = torch.stack(pieces).double()
        gram += part @ part.T
    return gram


def _branches(trainer: Trainer, dynamics: Dynamics, count: int) -> Iterator[StepSignal]:
    """Measure each step but the last by branching there."""
    for k in range(trainer.policy.rounds - 1):
        source = exchanged(trainer.run.source, trainer.run.source.window, Branch((k,)))
        there = replace(trainer, run=replace(trainer.run, source=source))
        if _level(trainer, dynamics, k)[1] == 0:
            continue
        made = [there.experience(there.context(1 + i)) for i in range(count)]
        gradients = [gradient(there, experience.batch) for experience in made]
        yield _signal(str(k), gradients, made, _level(trainer, dynamics, k))


def _columns(trainer: Trainer, dynamics: Dynamics, made: Sequence[Experience[Batch]]) -> Iterator[StepSignal]:
    """Measure each step that the run's own window trained, where it did so often enough."""
    batches = [experience.batch for experience in made if isinstance(experience.batch, Transitions)]
    for k in range(trainer.policy.rounds):
        alone = [_at_step(batch, k) for batch in batches if bool((batch.index == k).any())]
        if len(alone) >= LEAST:
            yield _signal(str(k), [gradient(trainer, batch) for batch in alone], made, _level(trainer, dynamics, k))


def _at_step(batch: Transitions, k: int) -> Transitions:
    """Return the rows that train step k, with that step alone."""
    here = batch.index == k
    rows = here.any(dim=1).nonzero().flatten()
    column, kept = here[rows].int().argmax(dim=1), batch[rows]
    at = torch.arange(len(rows))
    return replace(kept, **{name: vars(kept)[name][at, column][:, None] for name in BY_STEP})


def _bands(trainer: Trainer, made: Sequence[Experience[Batch]]) -> Iterator[StepSignal]:
    """Measure a forward-process objective in bands of its own times."""
    objective = trainer.run.objective
    times = objective.times
    if times is None:
        return
    edges = torch.linspace(times.low, times.high, BANDS + 1).tolist()
    for low, high in pairwise(edges):
        band = exchanged(objective, times, Times(low=low, high=high))
        there = replace(trainer, run=replace(trainer.run, objective=band))
        level = ((low + high) / 2, math.nan)
        yield _signal(f"t {low:.2f}-{high:.2f}", [gradient(there, e.batch) for e in made], made, level)


def _level(trainer: Trainer, dynamics: Dynamics, k: int) -> tuple[float, float]:
    """Return (sigma, std) of step k of the run's own grid."""
    policy, texts, seeds = trainer.policy, trainer.prompts.texts[:1], torch.zeros(1, dtype=torch.int64)
    grid = observe_prefix(policy.call, texts, seeds, 0, policy.rounds)[2]
    return grid.sigma(k), dynamics.step(grid, k, k + 1).std.item()


def _signal(
    name: str,
    gradients: Sequence[Tensor],
    made: Sequence[Experience[Batch]],
    level: tuple[float, float] = (math.nan, math.nan),
) -> StepSignal:
    spread = torch.cat([group_std(experience) for experience in made])
    share, error = signal_share(inner_products(gradients))
    tied = (spread == 0).double().mean().item()
    return StepSignal(name, *level, spread.mean().item(), tied, share, error, len(gradients))
