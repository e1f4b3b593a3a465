"""Policies over saved tiny pipelines, small rollouts of them, and what it takes to look inside."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from alignment.data.batches import Transitions
from alignment.data.random_streams import Draw
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.policy import Policy
from alignment.policy.prepare import load_policy, prepare
from samplers import Step, rows_of
from samplers.dynamics.base import Dynamics
from samplers.dynamics.coefficient_preserving import CoefficientPreserving
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.flow_sde import FlowSDE
from samplers.rollout import RolloutPlan, Trajectory, sample
from samplers.windows.base import Choice
from tests.support.tiny import FLUX_CALL, SD15_CALL

CPU = torch.device("cpu")
PROMPTS = ("a red circle", "two blue squares")
GROUP = 3
ALL = Choice((0, 1, 2), (0, 1, 2))
"""Of the four steps that tiny pipelines take, all but the last."""

ROWS = 1e-5
"""A matrix product rounds differently with another number of rows; states are of order one."""
DYNAMICS: dict[str, tuple[Dynamics, ...]] = {
    "flux": (FlowSDE(), DanceSDE(), CoefficientPreserving()),
    "sd15": (DDIM(), CoefficientPreserving()),
}

CASES: dict[str, dict[str, object]] = {
    "flux": FLUX_CALL,
    "flux guided": {**FLUX_CALL, "true_cfg_scale": 2.5, "negative_prompt": "blurry"},
    "sd15": {**SD15_CALL, "guidance_scale": 1.0},
    "sd15 guided": SD15_CALL,
    "sd15 negative": {**SD15_CALL, "negative_prompt": "blurry"},
}
"""Call arguments by case; the first word of a case names its family."""


def build(folder: Path, call: dict[str, object], *, ready: bool = True, **spec: object) -> Policy:
    """Return a policy with adapters of rank 2, prepared on `PROMPTS`."""
    described = PolicySpec(str(folder), call=dict(call), **{"lora": Lora(2), **spec})
    policy = load_policy(described, device=CPU, seed=0)
    if ready:
        prepare(policy, PROMPTS)
    return policy


def perturb(policy: Policy, scale: float = 0.2) -> None:
    """Move the trained weights away from the reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable.values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def plan(policy: Policy, dynamics: Dynamics, choice: Choice = ALL, **changes: object) -> RolloutPlan:
    """Return a rollout of `PROMPTS`, with all noise keyed by sample."""
    ids = torch.arange(len(PROMPTS) * GROUP)
    return RolloutPlan(
        **{
            "prompts": PROMPTS,
            "seeds": torch.tensor([10, 11]),
            "group_size": GROUP,
            "rounds": policy.rounds,
            "choice": choice,
            "dynamics": dynamics,
            "noise": lambda k, shape: Draw(0).normal("action", ids, k, shape),
            **changes,
        }
    )


def transitions(policy: Policy, made: RolloutPlan) -> tuple[Trajectory, Transitions]:
    """Return a rollout and its trained steps as a batch."""
    path = sample(policy.call, made)
    steps = [path.records[k] for k in made.choice.trained]
    n = len(steps[0].x)
    rows = n // len(made.prompts)
    batch = Transitions(
        prompts=tuple(text for text in made.prompts for _ in range(rows)),
        seeds=made.seeds.repeat_interleave(n // len(made.seeds)),
        group=torch.arange(len(made.prompts)).repeat_interleave(rows),
        chunk=torch.zeros(n, dtype=torch.int64),
        index=torch.tensor(made.choice.trained).expand(n, -1),
        x=torch.stack([s.x for s in steps], 1),
        x_next=torch.stack([s.x_next for s in steps], 1),
        model_output=torch.stack([s.model_output for s in steps], 1),
        coefficients=rows_of([s.step for s in steps], n),
        advantage=torch.ones(n, steps[0].x_next.shape[1]),
        mean_std=torch.full((n,), path.mean_std),
    )
    return path, batch


def replayed(policy: Policy, batch: Transitions) -> list[Tensor]:
    """Return the model outputs of a replay without gradient."""
    answers: list[Tensor] = []
    policy.replay(batch, lambda k, v: answers.append(v.float()), grad=False)
    return answers


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """Collect the rows of every call of `network`."""
    rows: list[int] = []

    def hook(module: nn.Module, args: tuple[object, ...], named: dict[str, object]) -> None:
        given = [value for value in (*args, *named.values()) if isinstance(value, Tensor) and value.ndim > 1]
        rows.append(len(given[0]))

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def plain(folder: Path, prompts: tuple[str, ...], seeds: list[int], call: dict[str, object]) -> Tensor:
    """Return what a user gets who never heard of this package."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    texts = {name: [v] * len(prompts) if isinstance(v, str) else v for name, v in call.items()}
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(list(prompts), generator=generator, output_type="pt", **texts).images


def log_ratio(batch: Transitions, k: int, model_output: Tensor) -> Tensor:
    """Return the log ratio of each action, `[n, A]`, averaged over elements."""
    step = Step.from_coefficients(batch.coefficients[:, k])
    x, x_next = batch.x[:, k, None], batch.x_next[:, k]
    now, before = (
        step.log_prob(x, v[:, None], x_next).flatten(2).mean(2) for v in (model_output, batch.model_output[:, k])
    )
    return now - before


def learn(policy: Policy, batch: Transitions) -> dict[str, Tensor]:
    """Replay with a backward pass in every visit; return the gradients by name."""
    for parameter in policy.trainable.values():
        parameter.grad = None
    policy.replay(batch, lambda k, v: (log_ratio(batch, k, v).exp() * batch.advantage).mean().backward(), grad=True)
    return {name: p.grad.clone() for name, p in policy.trainable.items() if p.grad is not None}


class Failing:
    """Make a policy's denoiser raise."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __enter__(self) -> None:
        def hook(module: nn.Module, args: tuple[object, ...]) -> None:
            raise RuntimeError("on purpose")

        self.handle = self.policy.denoiser.register_forward_pre_hook(hook)

    def __exit__(self, *exception: object) -> None:
        self.handle.remove()


def takes_one_row(policy: Policy) -> Policy:
    """Let the policy's pipeline refuse lists of prompts or generators, as some do: it then takes one row a call."""
    cls = type(policy.pipe)
    whole = inspect.unwrap(cls.__call__)

    def call(self: DiffusionPipeline, **given: object) -> object:
        if not isinstance(given["prompt"], str) or isinstance(given["generator"], list):
            raise ValueError("lists are not supported yet")
        return whole(self, **given)

    call.__signature__ = inspect.signature(whole)
    policy.pipe.__class__ = type(f"OneRow{cls.__name__}", (cls,), {"__call__": call})
    return policy
