"""A sampling step is three numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Return a number, or one number a row, shaped to multiply `like` `[B, ...]`."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))


@dataclass(frozen=True)
class Step:
    """One denoising step, x' = a x + b v + std z with z ~ N(0, I).

    Every one-step rule of this package has this form, so that sampling, density and divergence are written once.

    Attributes:
        a: Factor of the state: a number, or any leading shape of the state (`[B]`, `[B, K]`).
        b: Factor of the network's output, of the same shape.
        std: Standard deviation, of the same shape; 0 for a deterministic step.
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

    def to(self, device: torch.device) -> Step:
        """Return the step on `device`."""
        return Step(self.a.to(device), self.b.to(device), self.std.to(device))

    def mean(self, x: Tensor, v: Tensor) -> Tensor:
        """Return a x + b v in float32, shaped like `x`."""
        return expand(self.a, x) * x.float() + expand(self.b, x) * v.float()

    def sample(self, x: Tensor, v: Tensor, noise: Tensor) -> Tensor:
        """Return the next state in float32 for standard normal `noise`."""
        return self.mean(x, v) + expand(self.std, x) * noise.float()

    def log_prob(self, x: Tensor, v: Tensor, x_next: Tensor) -> Tensor:
        """Return the elementwise log density of `x_next`, float32, shaped like it.

        log N(x'; a x + b v, std^2), not reduced: an objective decides whether it sums or averages (the mean over
        elements is what every public trainer uses, and what clip ranges such as 1e-4 refer to).

        Args:
            x: State as stored.
            v: Network output at that state.
            x_next: Next state as stored, in or after the dtype the pipeline was handed.

        Raises:
            ValueError: If a std is 0; a deterministic step has no density.
        """
        if not bool((self.std > 0).all()):
            raise ValueError("a step with std 0 has no density: choose a stochastic dynamics for the trained steps")
        std = expand(self.std, x)
        z = (x_next.float() - self.mean(x, v)) / std
        return -0.5 * z * z - torch.log(std) - 0.5 * math.log(2 * math.pi)

    def kl(self, x: Tensor, v: Tensor, v_reference: Tensor) -> Tensor:
        """Return the elementwise divergence of this step under v from the same step under `v_reference`.

        KL(N(mu, s^2) || N(mu_ref, s^2)) = (b (v - v_ref))^2 / (2 s^2). Note: flow_grpo's code averages
        (mu - mu_ref)^2 / (2 g^2), which is |dt| times this; weights tuned there need that factor.
        """
        difference = expand(self.b, x) * (v.float() - v_reference.float())
        return difference.square() / (2 * expand(self.std, x).square())
