"""A sampling step is three numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Return a number, or one per row or one per element, shaped to multiply `like` `[B, ...]`."""
    if coefficient.ndim in (0, like.ndim):
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))


@dataclass(frozen=True)
class Step:
    """One denoising step, x' = a x + b v + std z with z ~ N(0, I).

    Every one-step rule of this package has this form, so that sampling, density and divergence are written once.

    Attributes:
        a: Factor of the state: a number, any leading shape of the state (`[B]`, `[B, K]`), or, where elements have
            times of their own, a shape with as many axes as the state that broadcasts against it.
        b: Factor of the network's output, of the same shape.
        std: Standard deviation, of the same shape; 0 for what does not move at random.
    """

    a: Tensor
    b: Tensor
    std: Tensor

    @classmethod
    def of(cls, a: float, b: float, std: float) -> Step:
        """Return the step with these float64 numbers, kept as float32 (the dtype of every density)."""
        return cls(*(torch.tensor(number, dtype=torch.float32) for number in (a, b, std)))

    @property
    def coefficients(self) -> Tensor:
        """The three numbers, `[..., 3]`."""
        return torch.stack([self.a, self.b, self.std], dim=-1)

    @classmethod
    def from_coefficients(cls, coefficients: Tensor) -> Step:
        """Return the step whose `coefficients` these are."""
        return cls(*coefficients.unbind(-1))

    @classmethod
    def cat(cls, rows: Sequence[Step]) -> Step:
        """Return the step of these rows side by side; a number that holds for all rows holds for all of these."""
        numbers = zip(*((row.a, row.b, row.std) for row in rows), strict=True)
        return cls(*(each[0] if each[0].ndim == 0 else torch.cat(each) for each in numbers))

    def to(self, device: torch.device) -> Step:
        """Return the step on `device`."""
        return Step(self.a.to(device), self.b.to(device), self.std.to(device))

    def for_actions(self) -> Step:
        """Return the step of states with an axis of actions after the rows, `[n, A, *latent]`."""
        return self if self.std.ndim < 2 else Step(*(number.unsqueeze(1) for number in (self.a, self.b, self.std)))

    @property
    def random(self) -> bool:
        """Whether every row has an element with noise, so that the step has a density."""
        rows = self.std.flatten(1).amax(dim=1) if self.std.ndim > 1 else self.std
        return bool((rows > 0).all())

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        """Return a x + b v in float32, shaped like `x`."""
        return expand(self.a, x) * x.float() + expand(self.b, x) * v.float()

    def sample(self, x: Tensor, v: Tensor, noise: Tensor) -> Tensor:
        """Return the next state in float32 for standard normal `noise`."""
        return self.mean(x, v) + expand(self.std, x) * noise.float()

    def log_prob(self, x: Tensor, v: Tensor, x_next: Tensor) -> Tensor:
        """Return the elementwise log density of `x_next`, float32, shaped like it.

        log N(x'; a x + b v, std^2), not reduced: an objective decides whether it sums or averages (the mean over
        elements is what every public trainer uses, and what clip ranges such as 1e-4 refer to). An element without
        noise is not part of the action: its density counts as 1.

        Args:
            x: State as stored.
            v: Network output at that state.
            x_next: Next state as stored, in or after the dtype the pipeline was handed.

        Raises:
            ValueError: If all of a row's stds are 0; a deterministic step has no density.
        """
        if not self.random:
            raise ValueError("a step with std 0 has no density: choose a stochastic dynamics for the trained steps")
        std = expand(self.std, x)
        if std.ndim == x.ndim and not bool((std > 0).all()):
            return self._log_prob_of_the_random(x, v, x_next)
        z = (x_next.float() - self.mean(x, v)) / std
        return -0.5 * z * z - torch.log(std) - 0.5 * math.log(2 * math.pi)

    def _log_prob_of_the_random(self, x: Tensor, v: Tensor, x_next: Tensor) -> Tensor:
        """Return the log density where some elements have no noise; these do not count."""
        moves = self.std > 0
        step = Step(self.a, self.b, torch.where(moves, self.std, torch.ones_like(self.std)))
        return step.log_prob(x, v, x_next) * moves

    def kl(self, x: Tensor, v: Tensor, v_reference: Tensor) -> Tensor:
        """Return the elementwise divergence of this step under v from the same step under `v_reference`.

        KL(N(mu, s^2) || N(mu_ref, s^2)) = (b (v - v_ref))^2 / (2 s^2). Note: flow_grpo's code averages
        (mu - mu_ref)^2 / (2 g^2), which is |dt| times this; weights tuned there need that factor.
        """
        difference = expand(self.b, x) * (v.float() - v_reference.float())
        std = expand(self.std, x)
        if std.ndim == x.ndim:
            return torch.where(std > 0, difference.square() / (2 * std.square().clamp(min=1e-20)), 0.0)
        return difference.square() / (2 * std.square())


def rows_of(steps: Sequence[Step], rows: int) -> Tensor:
    """Return the coefficients of K steps as `rows` rows took them: `[n, K, 3]`.

    Where elements have times of their own it is `[n, K, 1, *latent, 3]`, in shapes that broadcast against the states.
    """
    numbers = torch.broadcast_tensors(*(step.coefficients for step in steps))
    if numbers[0].ndim == 1:
        return torch.stack(numbers).expand(rows, -1, -1)
    return torch.stack([number.expand(rows, *number.shape[1:]) for number in numbers], dim=1)


def mean_std(steps: Iterable[Step]) -> float:
    """Return the mean std of steps and, where they differ in it, of their rows and elements."""
    stds = [per_row(step.std).mean().item() for step in steps]
    return sum(stds) / len(stds)


def per_row(number: Tensor) -> Tensor:
    """Return one number per row, `[n]` or `[]`: where there is one per element, the mean of those that are not 0."""
    if number.ndim < 2:
        return number
    flat = number.flatten(1)
    return flat.sum(dim=1) / (flat != 0).sum(dim=1).clamp(min=1)
