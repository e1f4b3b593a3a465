"""Which replay of a pipeline is exact: found out on the pipeline itself, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from alignment.batches import Transitions
from alignment.errors import NumericsError, PipelineError
from samplers import Act, Conductor, Native, Skip, rows_of
from samplers.dynamics.coefficient_preserving import CoefficientPreserving

CHECKED_ROUND = 2
"""A pipeline that keeps something from round to round shows it from its second round on, most after the first."""

ANSWER_TOLERANCE = 1e-4
"""Same weights, same rows, same arguments: answers are equal but for what a device adds up in another order."""


_RAISED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What networks raise where an earlier round went without them; PipelineError is one of these."""


class Replayable(Protocol):
    """What is checked: a policy."""

    pipe: Any
    rounds: int

    @property
    def stubs(self) -> bool:
        """Whether rounds that nobody learns from go without the denoiser."""
        ...

    @stubs.setter
    def stubs(self, value: bool) -> None: ...

    def call(self, conductor: Conductor, prompts: tuple[str, ...], seeds: Tensor, *, pixels: bool) -> Tensor | None:
        """Sample."""
        ...

    def replay(self, batch: Transitions, receive: Callable[[int, Tensor], None], *, grad: bool) -> None:
        """Visit recorded states."""
        ...


def check_replay(policy: Replayable, prompt: str) -> None:
    """Choose how the policy replays rounds that are not trained: without its networks, or else with them.

    One transition of one row is recorded and visited again; state and model output have to come back.

    Raises:
        PipelineError: If neither way is exact; nothing could be learned from such a pipeline's steps.
        NumericsError: If the model's output is not finite.
    """
    name = type(policy.pipe).__name__
    batch = _one_transition(policy, prompt)
    found: list[str] = []
    for stubs in (True, False):
        policy.stubs = stubs
        wrong = _differs(policy, batch)
        if wrong is None:
            return
        found.append(wrong)
    raise PipelineError(
        f"{name} cannot be trained: its {CHECKED_ROUND + 1}. round does not come out again in a second call with the "
        f"same random numbers ({found[-1]})"
    )


def _one_transition(policy: Replayable, prompt: str) -> Transitions:
    k = min(CHECKED_ROUND, policy.rounds - 1)
    rows = torch.zeros(1, dtype=torch.int64)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)

    act = Act(CoefficientPreserving(), noise)
    conductor = Conductor([*[Native()] * k, act, *[Skip()] * (policy.rounds - k - 1)])
    try:
        policy.call(conductor, (prompt,), rows, pixels=False)
    except ValueError as error:
        raise PipelineError(f"{type(policy.pipe).__name__} cannot be trained: {error}") from error
    record = conductor.records[k]
    if not bool(record.velocity.isfinite().all()):  # which would equal nothing, not even itself
        raise NumericsError(
            f"{type(policy.pipe).__name__}: the pipeline's own output is not finite before anything was trained. Its "
            "weights hold NaN, or a network overflows in its dtype; check policy.pipeline, or compute in float32 "
            "(policy.dtype: float32, policy.autocast: null)"
        )
    return Transitions(
        prompts=(prompt,),
        seeds=rows,
        group=rows,
        chunk=rows,
        index=torch.tensor([[k]]),
        x=record.x[:, None],
        x_next=record.x_next[:, None, None],
        velocity=record.velocity[:, None],
        coefficients=rows_of([record.step.for_actions()], 1),
        advantage=torch.ones(1, 1),
        mean_std=torch.ones(1),
    )


def _differs(policy: Replayable, batch: Transitions) -> str | None:
    """Return what a replay does not bring back, or None."""
    answers: list[Tensor] = []
    try:
        policy.replay(batch, lambda _, v: answers.append(v), grad=True)
    except _RAISED as error:  # a cache that was never filled, for one, raises what it likes
        return str(error.__cause__ or error).partition("\n")[0]
    (answer,), recorded = answers, batch.velocity[:, 0]
    apart = (answer.detach().float() - recorded).abs().max().item()
    if not apart <= ANSWER_TOLERANCE * max(recorded.abs().max().item(), 1e-8):
        return f"the model's answers differ by {apart:.2g}"
    return None if answer.requires_grad else "the model's answer has no gradient"
