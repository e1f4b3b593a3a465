"""Every way a run can be wrong that the doctor knows: rewards, dynamics, objectives and networks, each broken once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from alignment.context import Context
from alignment.data.batches import Experience, Groups, Transitions
from alignment.objectives.base import Loss, Objective
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import Trainer
from reward_models.base import Scorer
from reward_models.combinators.function import Function
from reward_models.measures.colour import Colour
from samplers.dynamics.coefficient_preserving import CoefficientPreserving as CPS
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from samplers.windows.base import Choice
from samplers.windows.fraction import Fraction
from tests.support.toy import REWARD, near_the_right_mode

STEPS = OnPolicySteps(4, REWARD, FlowSDE(), Fraction(), group_size=4, prompts_per_call=2)
SURROGATE = ClippedSurrogate(clip=1e-2)
Spoil = Callable[[Trainer], object]


def random_reward(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.rand(len(pixels))


def mixing_reward(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return near_the_right_mode(pixels, prompts) * len(prompts)


def constant_reward(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.ones(len(pixels))


def silent_reward(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(pixels),), torch.nan)


@dataclass(frozen=True)
class Swapped(Colour):
    """Says that it likes red and likes blue, as a checkpoint with its channels the wrong way round does."""

    def load(self, *, device: torch.device) -> Scorer:
        return Colour("blue").load(device=device)


def rewarded(name: str) -> OnPolicySteps:
    return replace(STEPS, reward=Function(f"{__name__}:{name}"))


@dataclass(frozen=True)
class LastLater(All):
    """Takes the last step, which has no noise, in from the third training step on: none is seen when the run loads."""

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        return All(drop_last=step < 2).choose(rounds, step, chunk, generator)


WITHOUT_NOISE = replace(STEPS, dynamics=CPS(), window=LastLater())


@dataclass(frozen=True)
class Late(All):
    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        if step > 1:
            raise ValueError("no step is left")
        return super().choose(rounds, step, chunk, generator)


@dataclass(frozen=True)
class OtherStd(OnPolicySteps):
    def __call__(self, ctx: Context, groups: Groups) -> Experience[Transitions]:
        made = super().__call__(ctx, groups)
        wrong = made.batch.coefficients * torch.tensor([1.0, 1.0, 1.5])
        return replace(made, batch=replace(made.batch, coefficients=wrong))


@dataclass(frozen=True)
class OtherModelOutput(OnPolicySteps):
    def __call__(self, ctx: Context, groups: Groups) -> Experience[Transitions]:
        made = super().__call__(ctx, groups)
        return replace(made, batch=replace(made.batch, model_output=made.batch.model_output + 0.1))


@dataclass(frozen=True)
class Greedy(ClippedSurrogate):
    """Pulls whatever the reward says."""

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        loss = super().loss(batch, k, model_output, reference)
        return replace(loss, per_row=loss.per_row + model_output.square().flatten(1).mean(1))


@dataclass(frozen=True)
class Even(ClippedSurrogate):
    """Takes bad for good."""

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        return super().loss(replace(batch, advantage=batch.advantage.abs()), k, model_output, reference)


@dataclass(frozen=True)
class Uphill(ClippedSurrogate):
    """Has the value of the loss and the gradient of its negative."""

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        loss = super().loss(batch, k, model_output, reference)
        return replace(loss, per_row=2 * loss.per_row.detach() - loss.per_row)


@dataclass(frozen=True)
class Meaned(ClippedSurrogate):
    """Divides by the rows of the microbatch, which the runtime does as well."""

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        loss = super().loss(batch, k, model_output, reference)
        return replace(loss, per_row=loss.per_row / len(batch))


@dataclass(frozen=True)
class Loose(ClippedSurrogate):
    """Computes its KL term without a graph."""

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        with torch.no_grad():
            term = super().loss(batch, k, model_output, reference).per_row
            term = term - super().loss(batch, k, model_output, None).per_row
        loss = super().loss(batch, k, model_output, None)
        return replace(loss, per_row=loss.per_row + term)


@dataclass(frozen=True)
class Idle(ClippedSurrogate):
    """Learns nothing."""

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        loss = super().loss(batch, k, model_output, reference)
        return replace(loss, per_row=0 * loss.per_row)


def drop_out(trainer: Trainer) -> None:
    trainer.policy.denoiser.out = nn.Sequential(nn.Dropout(0.5), trainer.policy.denoiser.out)
    trainer.policy.denoiser.train()


def freeze(trainer: Trainer) -> None:
    for p in trainer.policy.trainable.values():
        p.requires_grad_(False)


def detach(trainer: Trainer) -> None:
    trainer.policy.denoiser.register_forward_hook(lambda module, given, out: out.detach())


def use_a_copy(trainer: Trainer) -> None:
    vars(trainer.policy.pipe)["transformer"] = copy.deepcopy(trainer.policy.denoiser)


def shift_the_scheduler(trainer: Trainer) -> None:
    trainer.policy.door.native = vars(trainer.policy.pipe)["scheduler"] = type(trainer.policy.door.native)(shift=3.0)


def draw_in_the_scheduler(trainer: Trainer) -> None:
    trainer.policy.door.scheduler.register_to_config(stochastic_sampling=True)


def lose_the_reference(trainer: Trainer) -> None:
    for z in trainer.policy.snapshots["reference"].values():
        z.mul_(0.5)


def never_skip(trainer: Trainer) -> None:
    trainer.policy.door.routes.in_loop = lambda name: False


def one_time_a_call(trainer: Trainer) -> None:
    trainer.policy.row_times = True
    trainer.policy.denoiser.register_forward_pre_hook(
        lambda module, given: (given[0], given[1][:1].expand_as(given[1]))
    )


def overflow(trainer: Trainer) -> None:
    def hook(module: nn.Module, given: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient: gradient * torch.inf)

    trainer.policy.denoiser.register_forward_hook(hook)


NFT_RUN = (OnPolicy(4, REWARD, group_size=4), NFT())
BROKEN: dict[str, tuple[str, Source, Objective, Spoil | None]] = {
    "reward with swapped channels": ("reward knows its answers", replace(STEPS, reward=Swapped()), SURROGATE, None),
    "random reward": ("reward repeats", rewarded("random_reward"), SURROGATE, None),
    "reward that mixes rows": ("reward of a batch", rewarded("mixing_reward"), SURROGATE, None),
    "reward without a score": ("reward speaks", rewarded("silent_reward"), SURROGATE, None),
    "constant reward": ("reward spread", rewarded("constant_reward"), SURROGATE, None),
    "window that runs out": ("geometry", replace(STEPS, window=Late()), SURROGATE, None),
    "step without noise": ("noise at trained steps", WITHOUT_NOISE, SURROGATE, None),
    "dropout": ("pipeline repeats", STEPS, SURROGATE, drop_out),
    "dropout in ratios": ("first ratio", STEPS, SURROGATE, drop_out),
    "another scheduler": ("zero noise parity", STEPS, SURROGATE, shift_the_scheduler),
    "random scheduler": ("step formula", STEPS, SURROGATE, draw_in_the_scheduler),
    "frozen weights": ("adapter binds", STEPS, SURROGATE, freeze),
    "another network": ("training changes the output", STEPS, SURROGATE, use_a_copy),
    "lost reference": ("reference is adapter off", STEPS, replace(SURROGATE, kl=0.1), lose_the_reference),
    "another std": ("actions follow their density", OtherStd(**(vars(STEPS) | {"group_size": 64})), SURROGATE, None),
    "another model output": ("first ratio", OtherModelOutput(**vars(STEPS)), SURROGATE, None),
    "denoiser that always runs": ("replay runs what it trains", STEPS, SURROGATE, never_skip),
    "one time a call": ("times of rows", *NFT_RUN, one_time_a_call),
    "no graph": ("gradient reaches all", STEPS, SURROGATE, detach),
    "infinite gradient": ("gradient reaches all", STEPS, SURROGATE, overflow),
    "idle objective": ("objective pulls", STEPS, Idle(clip=1e-2), None),
    "greedy objective": ("zero credit zero gradient", STEPS, Greedy(clip=1e-2), None),
    "even objective": ("flipped credit flipped gradient", STEPS, Even(clip=1e-2), None),
    "uphill objective": ("a step down lowers the loss", STEPS, Uphill(clip=1e-2), None),
    "loose KL": ("kl term pulls", STEPS, Loose(clip=1e-2, kl=0.1), None),
    "mean of a microbatch": ("microbatches add up", STEPS, Meaned(clip=1e-2), None),
}
"""Name of the failure: the law that finds it, source, objective, and what is done to the loaded run."""
