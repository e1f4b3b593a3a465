"""Which replay of a pipeline is exact: checked on the pipeline itself, before anything is trained.

A pipeline may keep something from round to round: a cache of keys and values, a moving average of guidance. A replay
that skips some rounds may then have other model outputs, or the same with another gradient, because what was kept is a
function of the weights, too. So the first, a middle and the last round are visited again, in one row and in
several, from one noise and from two. Model outputs have to be the sampler's, gradients those of one graph over all
rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.data.batches import Transitions
from alignment.errors import NumericsError, PipelineError
from alignment.policy.between import Between, Receive
from alignment.policy.policy import Policy
from alignment.policy.visits import ANSWER_TOLERANCE, difference
from reward_models.foreign import out_of_memory
from samplers import Act, Conductor, Look, Native, Round, Skip
from samplers.dynamics.coefficient_preserving import CoefficientPreserving
from samplers.errors import SamplingError

ROWS_TOLERANCE = 1e-2
"""Of the largest number: what another number of rows does in bfloat16. Another noise or prompt does far more."""

GRADIENT_TOLERANCE = 1e-2
"""Of a gradient's length: attention adds up its gradient in another order each time, in bfloat16 too. A path that is
missing is a good part of the whole: 5 % for a moving average of a tenth, half for a cache of keys and values."""

WATCHED = 16
"""Trained tensors whose gradients are compared, at least: those of a network that is trained whole fill its memory."""


@dataclass(frozen=True)
class _Answer:
    """The result of a visit: the model output, and its gradient in a fixed direction by watched tensor."""

    model_output: Tensor
    gradients: Sequence[Tensor]


def check_replay(policy: Policy, prompts: Sequence[str]) -> None:
    """Choose how the policy replays rounds that are not trained: the cheapest way that is exact.

    Args:
        policy: What is checked.
        prompts: What will be sampled.

    Raises:
        PipelineError: If no way is exact; nothing could be learned from such a pipeline's steps.
        NumericsError: If the model's output is not finite.
    """
    name, last = type(policy.pipe).__name__, policy.rounds - 1
    batch = _recorded(policy, prompts[:1], torch.zeros(1, dtype=torch.int64), sorted({0, last // 2, last}))
    try:
        policy.between = Between.WHOLE
        whole = _answers(policy, lambda receive: policy.replay_whole(batch, receive), kept=True)
        _compare(batch, whole, whole)
        _choose(policy, batch, whole)
        if not policy.form.single:
            _check_rows(policy, prompts)
    except PipelineError as error:
        raise PipelineError(f"{name} cannot be trained: {error}") from error


def _choose(policy: Policy, batch: Transitions, whole: Sequence[_Answer]) -> None:
    refused = None
    for between in Between:
        policy.between = between
        try:
            found = _answers(policy, lambda receive: policy.replay(batch, receive, grad=True), kept=False)
            return _compare(batch, found, whole)
        except PipelineError as error:  # a cache that was never filled, for one, makes a pipeline raise what it likes
            refused = error
    assert refused is not None
    raise refused


def _check_rows(policy: Policy, prompts: Sequence[str]) -> None:
    """Have rows visited again side by side: two that share their noise, which part at the first step, and one alone."""
    companions = policy.form.companions(prompts)
    texts = (companions[0], companions[0], companions[-1])
    batch = _recorded(policy, texts, torch.tensor([0, 0, 1]), sorted({0, min(1, policy.rounds - 1)}))
    answers: dict[int, Tensor] = {}
    policy.replay(batch, lambda k, v: answers.update({k: v.float()}), grad=False)
    for k, model_output in answers.items():
        apart = difference(model_output, batch.model_output[:, k])
        if not apart <= ROWS_TOLERANCE:
            raise PipelineError(
                f"{len(batch)} rows of one call do not come out again in their {batch.index[0, k] + 1}. round (the "
                f"model's answers differ by {apart:.2g} of the largest)"
            )


# ---- a rollout, and what visits make of it ---------------------------------------------------------------------------


def _recorded(policy: Policy, prompts: Sequence[str], seeds: Tensor, rounds: Sequence[int]) -> Transitions:
    """Return a rollout as a batch, trained in `rounds`; none of them but the pipeline's last is without noise."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    ends = policy.rounds - 1

    def action(k: int) -> Round:
        if k not in rounds:
            return Native() if k < rounds[-1] else Skip()
        return Look(lambda x, v, _: seen.update({k: (x, v)})) if k == ends else Act(CoefficientPreserving(), noise(k))

    def noise(k: int) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.randn(x.shape, generator=torch.Generator().manual_seed(k)).to(x.device)

    conductor = Conductor([action(k) for k in range(policy.rounds)])
    try:
        policy.call(conductor, tuple(prompts), seeds, pixels=False)
    except SamplingError as error:
        raise PipelineError(str(error)) from error
    steps = {k: (r.x, r.model_output, r.x_next) for k, r in conductor.records.items()}
    steps |= {k: (x.float(), v.float(), x.float()) for k, (x, v) in seen.items()}  # nothing follows the last round
    x, model_output, x_next = (torch.stack(z, 1) for z in zip(*(steps[k] for k in rounds), strict=True))
    if not bool(model_output.isfinite().all()):  # which would equal nothing, not even itself
        raise NumericsError(
            f"{type(policy.pipe).__name__}: the pipeline's own output is not finite before anything was trained. Its "
            "weights hold NaN, or a network overflows in its dtype; check policy.pipeline, or compute in float32 "
            "(policy.dtype: float32, policy.autocast: null)"
        )
    rows = torch.zeros(len(seeds), dtype=torch.int64)
    return Transitions(
        prompts=tuple(prompts),
        seeds=seeds,
        group=rows,
        chunk=rows,
        index=torch.tensor(rounds).expand(len(seeds), -1),
        x=x,
        x_next=x_next[:, :, None],
        model_output=model_output,
        coefficients=torch.zeros(len(seeds), len(rounds), 3),  # of the densities, which nobody asks for here
        advantage=torch.ones(len(seeds), 1),
        mean_std=torch.ones(len(seeds)),
    )


def _answers(policy: Policy, visit: Callable[[Receive], None], *, kept: bool) -> list[_Answer]:
    """Return the result of each visit; `kept` keeps the graph of earlier visits, which later ones may use."""
    trained = list(policy.trainable.values())
    # An odd stride: adapters come in pairs, one of which starts at zero and leaves the other without a gradient.
    watched = trained[:: max(1, len(trained) // WATCHED) | 1]
    answers: list[_Answer] = []

    def receive(k: int, model_output: Tensor) -> None:
        if not model_output.requires_grad:
            raise PipelineError(f"the model's answer has no gradient in visit {k + 1}")
        direction = torch.randn(model_output.shape, generator=torch.Generator().manual_seed(k)).to(model_output.device)
        try:
            along = (model_output.float() * direction).sum()
            gradients = policy.weights.layout.gradients(along, watched, kept=kept)
        except RuntimeError as error:  # a graph that leads into an earlier round's, which is gone
            if out_of_memory(error):
                raise
            raise PipelineError(str(error).partition("\n")[0]) from error
        answers.append(_Answer(model_output.detach().float(), gradients))

    visit(receive)
    return answers


def _compare(batch: Transitions, found: Sequence[_Answer], whole: Sequence[_Answer]) -> None:
    """Refuse model outputs other than the recorded ones, and gradients other than those of the whole graph."""
    for k, (answer, wanted) in enumerate(zip(found, whole, strict=True)):
        where = (
            f"its {batch.index[0, k] + 1}. round does not come out again in a second call with the same random numbers"
        )
        apart = difference(answer.model_output, batch.model_output[:, k])
        if not apart <= ANSWER_TOLERANCE:
            raise PipelineError(f"{where} (the model's answers differ by {apart:.2g} of the largest)")
        size = sum(float(g.square().sum()) for g in wanted.gradients) ** 0.5
        off = sum(float((g - w).square().sum()) for g, w in zip(answer.gradients, wanted.gradients, strict=True)) ** 0.5
        if not off <= GRADIENT_TOLERANCE * size:
            raise PipelineError(f"{where} (the gradient is off by {off / max(size, 1e-12):.2g} of its length)")
