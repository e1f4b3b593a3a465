"""The laws of learning: transitions and their density, replay, gradients, and what they do to the loss."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Normal

from alignment.data.batches import Transitions
from alignment.objectives.forward_process.noising import draw_points
from alignment.objectives.kernels.surrogate import log_ratio
from alignment.objectives.policy_gradient.base import actions
from alignment.policy.visits import how_visits_go
from alignment.preflight.doctor.subject import (
    Finding,
    NotApplicable,
    Subject,
    at_most,
    gradient,
    group_std,
    mean_loss,
    more_than,
    preserved,
)
from alignment.training.loop import microbatches
from samplers import Step, observe_prefix
from samplers.paths.times import Times
from samplers.step import expand

RATIO = 1e-6
"""First ratios are off 1 by no more than this where rollout and training compute the same sums in float32."""
CLIP_SHARE = 0.1
"""Where they do not, what rounding does to a ratio must stay a small part of the clip range."""
SAME_GRADIENT, SAME_GRADIENT_HALF = 1e-4, 5e-2
"""Two gradients are the same up to rounding: in float32, and through a network that computes in half precision."""
DENSITY = 1e-5
"""Rounding of a log density that is averaged over elements, float32 against float64."""
DESCENT, DESCENT_HALF, DESCENT_HOLDS = 1e-3, 3e-2, 0.1
"""Change of the loss that a step down the gradient is to make, in mean advantages (larger in half precision, to stand
out from rounding), and the share of it that it must make. Half is left where a clip cuts one side off, or where a loss
is divided by its own size without graph (DiffusionNFT)."""
MOSTLY_TIED = 0.5
"""Share of groups without any spread above which most of the work is for nothing."""
SIGMAS = 6.0
"""Standard errors allowed where a law is statistical: a healthy run fails once in a billion times."""


def noise_at_trained_steps(subject: Subject) -> Finding:
    """Every step that may be trained has noise, and so a density; without it gradients are zero without a word."""
    policy = subject.policy
    window, dynamics = subject.window, subject.dynamics
    texts, seeds = subject.trainer.prompts.texts[:1], torch.zeros(1, dtype=torch.int64)
    grid = observe_prefix(policy.call, texts, seeds, 0, policy.rounds)[2]
    trained: set[int] = set()
    for call in range(32):
        trained |= set(window.choose(policy.rounds, call, 0, subject.ctx.draw.generator("doctor", call)).trained)
    std = {k: dynamics.step(grid, k, k + 1).std.item() for k in sorted(trained)}
    least = min(std, key=lambda k: std[k])
    says = f"least std of a step, of {', '.join(map(str, std))}"
    name = type(dynamics).__name__
    cause = f"{name} has no noise at step {least}: raise its noise level, or take the step out of the window"
    return more_than(std[least], 0, says, cause)


def reward_spread(subject: Subject) -> Finding:
    """The rewards of one step tell the samples of a prompt apart."""
    found = subject.look_at_a_step()
    _ = subject.reward
    if not len(found.rewards.value):
        raise NotApplicable("the objective makes and scores its samples itself, and compares none")
    spread, mean = group_std(found), found.rewards.value.nanmean().item()
    tied = (spread == 0).double().mean().item()
    says = f"groups whose samples tie, of {len(spread)}; reward {mean:.4g}, std in a group {spread.mean().item():.3g}"
    if tied == 1:
        cause = "no group has a sample better than another: a harder or softer reward, larger groups, or earlier noise"
        return Finding("FAIL", tied, "< 1", says, cause)
    if tied > MOSTLY_TIED:
        cause = "most groups teach nothing: try a softer reward, larger groups, or branching at an earlier step"
        return Finding("warning", tied, f"<= {MOSTLY_TIED}", says, cause)
    return Finding("pass", tied, f"<= {MOSTLY_TIED}", says)


def log_probability(subject: Subject) -> Finding:
    """The stored log-probability is that of torch.distributions, at what the policy answered."""
    batch, apart = subject.transitions, 0.0
    for k in range(batch.index.shape[1]):
        step, x, v, x_next = _stored(batch, k)
        ours = step.log_prob(x, v, x_next).double()
        a, b, std = (z.double().reshape(-1, *[1] * (x.ndim - 1)) for z in (step.a, step.b, step.std))
        theirs = Normal(a * x.double() + b * v.double(), std.expand_as(x)).log_prob(x_next.double())
        apart = max(apart, (ours - theirs).flatten(2).mean(dim=2).abs().max().item())
    cause = "a log-probability without its constant, or in half precision"
    return at_most(apart, DENSITY, "stored density against torch.distributions.Normal, mean of elements", cause)


def actions_follow_their_density(subject: Subject) -> Finding:
    """Stored actions are spread as the stored standard deviation says: the density is that of the sampler that ran."""
    _ = subject.transitions
    batch, worst, count = subject.experience.batch, 0.0, 0
    assert isinstance(batch, Transitions)
    for k in range(batch.index.shape[1]):
        step, x, v, x_next = _stored(batch, k)
        moves = expand(step.std.to(x), x) > 0
        z = ((x_next - step.mean(x, v)) / expand(step.std.to(x), x))[moves.expand_as(x_next)]
        square, count = z.double().square().mean().item(), z.numel()
        worst = max(worst, abs(square - 1) / math.sqrt(2 / count))
    cause = "the step that was stored is not the step that was taken, or states were rounded after it"
    return at_most(worst, SIGMAS, f"standard errors between |z|^2 and 1, {count} numbers a step", cause)


def _stored(batch: Transitions, k: int) -> tuple[Step, Tensor, Tensor, Tensor]:
    """Return the k-th step of each row with its (x, model_output, x_next), each with an axis of actions."""
    step = Step.from_coefficients(batch.coefficients[:, k])
    return step, batch.x[:, k, None], batch.model_output[:, k, None], batch.x_next[:, k]


def first_ratio(subject: Subject) -> Finding:
    """Until the first update the policy is the one that sampled: every likelihood ratio is 1.

    Ratios are those that the objective takes, of whole latents or of single positions. Looked at with moved weights, as
    after some training: an adapter that adds nothing yet hides its own faults.
    """
    _ = subject.transitions
    trainer = subject.trainer
    trainer = replace(trainer, run=replace(trainer.run, source=trainer.run.source.small()))
    channels = trainer.run.objective.channels
    errors: list[float] = []

    def receive(k: int, model_output: Tensor) -> None:
        done = actions(Step.from_coefficients(batch.coefficients[:, k]), batch, k)
        ratio = log_ratio(model_output.detach(), done, batch.advantage, channels).exp()
        errors.append((ratio - 1).abs().max().item())

    with subject.moved():
        made = trainer.experience(trainer.context(1)).batch
        assert isinstance(made, Transitions)
        for rows in microbatches(made, torch.arange(len(made)), trainer.run.batch.rows):
            batch = made[rows].to(subject.policy.device)
            subject.policy.replay(batch, receive, grad=True)
    limit, why = _ratio_limit(subject)
    cause = (
        f"rollout and training disagree (clip {_clip(subject) or 'none'}): dropout, another precision, guidance, or a "
        "batch that changes the answer"
    )
    return at_most(max(errors), limit, f"largest |ratio - 1| before any update; bound: {why}", cause)


def _ratio_limit(subject: Subject) -> tuple[float, str]:
    clip = _clip(subject)
    by_position = subject.trainer.run.objective.spatial
    if subject.exact and not (by_position and clip):
        return RATIO, "float32"
    spec = subject.trainer.run.policy
    causes = [spec.autocast and f"{spec.autocast} autocast", spec.dtype != "float32" and f"{spec.dtype} weights"]
    causes += [spec.lora is not None and spec.lora.merge and "adapters merged in rollouts"]
    causes += [by_position and "ratios of a few numbers each"]
    why = " and ".join(str(cause) for cause in causes if cause)
    return (CLIP_SHARE * clip, f"a tenth of the clip range, for {why}") if clip else (1e-3, why)


def _clip(subject: Subject) -> float | None:
    return subject.trainer.run.objective.clip


def replay_runs_what_it_trains(subject: Subject) -> Finding:
    """Replay runs the denoiser in trained rounds and in no other."""
    batch, policy, calls = subject.transitions, subject.policy, 0

    def count(module: torch.nn.Module, given: tuple[object, ...]) -> None:
        nonlocal calls
        calls += 1

    handle = policy.denoiser.register_forward_pre_hook(count)
    try:
        subject.latents()
        each, calls = calls / policy.rounds, 0
        policy.replay(batch, lambda k, v: None, grad=False)
    finally:
        handle.remove()
    expected, trained = each * batch.index.shape[1], batch.index.shape[1]
    says = f"denoiser calls beyond the {expected:g} that {trained} trained of {policy.rounds} steps need"
    return at_most(calls - expected, 0, says, "the pipeline carries state on, so that stubbed rounds had to run")


# ---- gradients -------------------------------------------------------------------------------------------------------


def gradient_reaches_all(subject: Subject) -> Finding:
    """Every trained weight gets a finite gradient through the pipeline."""
    policy, batch = subject.policy, subject.credited
    generator = subject.ctx.draw.generator("doctor cotangent")

    def pull(k: int, model_output: Tensor) -> None:
        (
            model_output.float() * torch.randn(model_output.shape, generator=generator).to(model_output.device)
        ).sum().backward()

    # Moved first: an adapter whose second matrix is still zero passes nothing on to its first.
    with subject.moved():
        if isinstance(batch, Transitions):
            policy.replay(batch, pull, grad=True)
        else:
            policy.visit(
                batch, [(p.x, p.t) for p in draw_points(subject.ctx, batch, batch.x0, Times(), 1)], pull, grad=True
            )
        grads = {name: p.grad for name, p in policy.trainable.items()}
    wild = [name for name, g in grads.items() if g is not None and not bool(g.isfinite().all())]
    none = [name for name, g in grads.items() if g is None or not bool(g.any())]
    says = f"tensors without a gradient, of {len(grads)}"
    if wild:
        cause = f"{wild[0]} and {len(wild) - 1} more have gradients that are not finite: compute in float32 or bfloat16"
        return Finding("FAIL", float(len(wild)), "0", f"tensors with NaN or infinity, of {len(grads)}", cause)
    if len(none) == len(grads):
        cause = "the denoiser's output has no graph to the trained weights: frozen, detached, or another copy of it ran"
        return Finding("FAIL", float(len(none)), "0", says, cause)
    if none:
        cause = f"{none[0]} and {len(none) - 1} more do nothing for the output; harmless, but they take memory"
        return Finding("warning", float(len(none)), "0", says, cause)
    return Finding("pass", 0.0, "0", says)


def zero_credit_zero_gradient(subject: Subject) -> Finding:
    """Where nothing is better than anything else, nothing is learned."""
    _signed(subject)
    batch, size = subject.credited, _size(subject)
    rest = gradient(subject.trainer, replace(batch, advantage=torch.zeros_like(batch.advantage))).norm().item() / size
    cause = "the objective pulls whatever the reward says"
    return at_most(rest, _rounding(subject), "gradient without credit / gradient with", cause)


def flipped_credit_flipped_gradient(subject: Subject) -> Finding:
    """Turning every judgement round turns the gradient round."""
    _signed(subject)
    batch, size = subject.credited, _size(subject)
    flipped = gradient(subject.trainer, replace(batch, advantage=-batch.advantage))
    apart = (subject.start + flipped).norm().item() / size
    cause = "first ratios leave the clip range before anything is learned, or the objective is not odd in its credit"
    return at_most(apart, _rounding(subject), "|g(A) + g(-A)| / |g(A)|", cause)


def _signed(subject: Subject) -> None:
    """Leave objectives alone in which credit is no push.

    Raises:
        NotApplicable: For those.
    """
    if not subject.trainer.run.objective.signed:
        raise NotApplicable("credit weighs what is imitated, or sets a target: it has no sign to turn")


def a_step_down_lowers_the_loss(subject: Subject) -> Finding:
    """A small step down the gradient lowers the loss by about what the gradient promises."""
    batch, size, start = subject.credited, _size(subject), subject.start
    reach = (DESCENT if subject.single else DESCENT_HALF) * batch.advantage.abs().mean().item() / size**2 / 2
    ends: list[float] = []
    for sign in (1, -1):
        with preserved(subject.policy):
            offset = 0
            for p in subject.policy.trainable.values():
                piece = start[offset : offset + p.numel()].view(p.shape).to(p)
                p.data.add_(piece, alpha=sign * reach)
                offset += p.numel()
            ends.append(mean_loss(subject.trainer, batch))
    promised = 2 * reach * size**2
    says = f"change of the loss / what the gradient promises, {promised:.1e}"
    cause = "the gradient is not that of the loss: a detached tensor, or weights that rollouts do not use"
    return more_than((ends[0] - ends[1]) / promised, DESCENT_HOLDS, says, cause)


def kl_term_pulls(subject: Subject) -> Finding:
    """A term that is switched on has a gradient: a KL computed without graph is logged and does nothing."""
    trainer, batch = subject.trainer, subject.credited
    if trainer.run.objective.kl == 0:
        raise NotApplicable("no KL term is switched on")
    without = replace(trainer.run.objective, kl=0.0)  # type: ignore[type-var]  # every kind is a dataclass
    # Moved first: at the reference itself the divergence is at its minimum, and pulls nowhere.
    with subject.moved():
        plain = gradient(replace(trainer, run=replace(trainer.run, objective=without)), batch)
        pull = (gradient(trainer, batch) - plain).norm().item()
    cause = "the KL term has no graph: it is computed, logged, and does nothing"
    return more_than(pull, 0, "what the term adds to the gradient of moved weights", cause)


def microbatches_add_up(subject: Subject) -> Finding:
    """Cutting the rows into microbatches changes the gradient by rounding only."""
    batch = subject.credited
    if not isinstance(batch, Transitions) and not subject.policy.row_times:
        raise NotApplicable("this pipeline takes one time a call, so rows of a microbatch share theirs")
    if len(batch) < 2:
        raise NotApplicable("one row cannot be split")
    one_by_one = gradient(subject.trainer, batch, microbatch=1)
    apart = (subject.start - one_by_one).norm().item() / _size(subject)
    cause = "a mean is taken over a microbatch before the runtime does, or rows of a batch answer for each other"
    return at_most(apart, _rounding(subject), f"{len(batch)} rows together against one by one, relative", cause)


def times_of_rows(subject: Subject) -> Finding:
    """Rows may be visited at times of their own, which forward-process objectives rely on."""
    batch = subject.credited
    if isinstance(batch, Transitions):
        raise NotApplicable("transitions of a call share their times")
    if len(batch) < 2:
        raise NotApplicable("one row has one time")
    policy, assumed, rows = subject.policy, subject.policy.row_times, batch[torch.arange(2)]
    found, _ = how_visits_go(functools.partial(policy.visit, rows, grad=False), rows.x0.to(policy.device))
    says = "the pipeline takes a time for each row" if found else "the pipeline takes one time a call"
    if assumed and not found:
        return Finding("FAIL", 0.0, "", says, "training assumes a time for each row")
    return Finding("pass", float(found), "", says)


def _size(subject: Subject) -> float:
    """Return the length of the gradient at the start.

    Raises:
        NotApplicable: If it is zero or not finite: other laws compare with it.
    """
    size = subject.start.norm().item()
    if not (math.isfinite(size) and size > 0):
        raise NotApplicable(f"the objective's gradient has length {size}")
    return size


def objective_pulls(subject: Subject) -> Finding:
    """The objective has a finite gradient that is not zero."""
    size = subject.start.norm().item()
    cause = "the objective gives no gradient: every ratio clipped, a detached loss, or nothing that can be trained"
    if not math.isfinite(size):
        return Finding("FAIL", size, "finite", "length of the gradient", "numbers overflow: see dtype")
    return more_than(size, 0, f"length of the gradient of {len(subject.credited)} rows", cause)


def _rounding(subject: Subject) -> float:
    return SAME_GRADIENT if subject.single else SAME_GRADIENT_HALF
