"""How the work of a run is divided among its processes: plain data, and the arithmetic of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from alignment.errors import FieldError
from alignment.policy.networks.spec import PolicySpec

Share = int | Literal["auto"] | None
Problem = tuple[str, str]
"""(key path, message)"""
TORCH_ATTENTION = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")
"""Attention backends of diffusers that call torch's `scaled_dot_product_attention`."""
_SIZES = ("DP_SHARD", "DP_REPLICATE", "TP", "CP", "SP")


@dataclass(frozen=True)
class Parallel:
    """Among how many processes the trained networks are spread, and how many work at the same samples.

    Attributes:
        shard: Processes that hold the trained networks together: weights, gradients, optimiser state and frozen copies,
            a part each (FSDP2). "auto" takes all that `replicate` leaves; null takes what accelerate was told, or 1:
            every process has all of them.
        replicate: How many such sets of processes there are (hybrid sharding). "auto" and null take what `shard`
            leaves.
        context: How many neighbouring processes work at the same samples, each at a part of their tokens (context
            parallel): they divide the activations of a long clip among them. It says nothing of where weights lie: the
            processes of `shard` and `replicate` are these, too. null takes what accelerate was told, or 1.
        stay_gathered: Whether a process keeps the whole weights while it samples, once it has gathered them: faster
            where they fit, for sampling learns nothing and needs no room for gradients.
    """

    shard: Share = None
    replicate: Share = None
    context: int | None = None
    stay_gathered: bool = False

    def __post_init__(self) -> None:
        for name, count in {"shard": self.shard, "replicate": self.replicate, "context": self.context}.items():
            if isinstance(count, int) and count < 1:
                others = "or null" if name == "context" else '"auto" or null'
                raise FieldError(name, f"got {count}, expected a number of processes of at least 1, {others}")


@dataclass(frozen=True)
class Division:
    """The numbers that a description comes to.

    Attributes:
        shard: Processes that hold the networks together.
        replicate: Sets of them.
        context: Processes that work at the same samples.
    """

    shard: int
    replicate: int
    context: int = 1

    @property
    def teams(self) -> int:
        """How many processes, or teams of them, have samples of their own."""
        return self.shard * self.replicate // self.context


def as_launched(parallel: Parallel, environment: Mapping[str, str]) -> Parallel:
    """Return the description with what `accelerate launch` was told where it says nothing itself.

    Args:
        parallel: The description.
        environment: The process's own, in which accelerate passes its settings on.

    Raises:
        FieldError: If the two contradict each other, or accelerate was told what is not done here.
    """
    if _is_set(environment, "ACCELERATE_USE_DEEPSPEED"):
        raise FieldError(
            "parallel",
            "accelerate was launched with DeepSpeed, which is not used here: FSDP2 spreads the same things; launch "
            "with configs/accelerate/fsdp2.yaml, or plainly, and set parallel.shard",
        )
    if not _is_set(environment, "ACCELERATE_USE_FSDP"):
        return parallel
    if (version := environment.get("FSDP_VERSION", "1")) != "2":
        raise FieldError(
            "parallel",
            f"accelerate was launched with fsdp_version {version}; set it to 2 in its config file, or launch plainly "
            "and set parallel.shard",
        )
    told = Parallel("auto", "auto")
    if _is_set(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        sizes = {name: int(environment.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1")) for name in _SIZES}
        if others := [f"{name.lower()}_size {sizes[name]}" for name in ("TP", "SP") if sizes[name] > 1]:
            raise FieldError(
                "parallel",
                f"accelerate was launched with {', '.join(others)}; only dp_shard, dp_replicate and cp are used",
            )
        # Its weights are spread over those that share a sample, too.
        told = Parallel(
            sizes["DP_SHARD"] * sizes["CP"], sizes["DP_REPLICATE"], sizes["CP"] if sizes["CP"] > 1 else None
        )
    for name, ours, theirs in (
        ("shard", parallel.shard, told.shard),
        ("replicate", parallel.replicate, told.replicate),
        ("context", parallel.context, told.context),
    ):
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            raise FieldError(
                f"parallel.{name}", f"it is {ours}, but accelerate was launched with {theirs}; say it in one place"
            )
    return replace(
        parallel,
        shard=told.shard if parallel.shard is None else parallel.shard,
        replicate=told.replicate if parallel.replicate is None else parallel.replicate,
        context=told.context if parallel.context is None else parallel.context,
    )


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() == "true"


def divide(parallel: Parallel, processes: int) -> Division:
    """Return how so many processes are divided.

    Raises:
        FieldError: With the arithmetic that does not work out.
    """
    shard, replicate = parallel.shard, parallel.replicate
    if shard == "auto":
        shard = processes // replicate if isinstance(replicate, int) else processes
    shard = shard or 1
    if not isinstance(replicate, int):
        replicate = processes // shard
    if shard * replicate != processes:
        left = f"{processes} = {shard} x {processes // shard} + {processes % shard}"
        why = left if processes % shard or parallel.replicate in (None, "auto") else f"they ask for {shard * replicate}"
        raise FieldError(
            "parallel.shard",
            f"{shard} processes in each of {replicate} sets are not the {processes} that were launched ({why}); launch "
            'as many as shard x replicate, or set one of them to "auto"',
        )
    context = parallel.context or 1
    if processes % context:
        fitting = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
        raise FieldError(
            "parallel.context",
            f"teams of {context} that work at the same samples do not divide the {processes} processes that were "
            f"launched; use one of {fitting}, or launch a multiple of {context}",
        )
    return Division(shard, replicate, context)


def problems(
    parallel: Parallel, policy: PolicySpec, needs_whole: Mapping[str, str], processes: int
) -> Iterator[Problem]:
    """Yield what keeps a policy from being divided among so many processes, as (key, message).

    Args:
        parallel: How it is to be divided.
        policy: The policy.
        needs_whole: Keys of its optimiser that need every weight whole, and why.
        processes: How many there are.
    """
    try:
        division = divide(as_launched(parallel, os.environ), processes)
    except FieldError as error:
        yield error.field, error.reason
        return
    if division.context > 1:
        yield from _not_divided(policy, division.context)
    if division.shard > 1:
        for key, why in needs_whole.items():
            yield key, f"{why}, or parallel.shard=1 (it is {division.shard})"
        yield from _not_spread(policy, division.shard)


def _not_divided(policy: PolicySpec, context: int) -> Iterator[Problem]:
    """Yield what keeps the tokens of a policy's networks from being divided."""
    if policy.attention not in TORCH_ATTENTION:
        yield (
            "policy.attention",
            f"attention over tokens that {context} processes share (parallel.context) goes through torch's own; got "
            f"{policy.attention}, expected one of {', '.join(TORCH_ATTENTION)}",
        )
    if policy.compile:
        yield (
            "policy.compile",
            f"networks whose tokens {context} processes share (parallel.context) are not compiled; set "
            "policy.compile=false, or parallel.context=1",
        )


def _not_spread(policy: PolicySpec, shard: int) -> Iterator[Problem]:
    """Yield what keeps a policy's networks from being spread."""
    if policy.lora is not None and policy.lora.merge:
        yield (
            "policy.lora.merge",
            f"adapters cannot be folded into weights of which {shard} processes hold a part each "
            "(parallel.shard); set policy.lora.merge=false",
        )
    if any(adapter.when == "sampling" for adapter in policy.adapters):
        yield (
            "policy.adapters",
            f"one with when: sampling cannot be put in and out of weights of which {shard} processes hold a "
            "part each (parallel.shard); use when: always, or parallel.shard=1",
        )
    if policy.quantize is not None:
        yield (
            "policy.quantize",
            f"weights of {policy.quantize} cannot be spread over processes (parallel.shard: {shard}); spread "
            "them unrounded, policy.quantize=null, or keep them whole, parallel.shard=1",
        )
    if policy.compile:
        yield (
            "policy.compile",
            f"networks that are spread over processes (parallel.shard: {shard}) are not compiled as one; set "
            "policy.compile=false, or parallel.shard=1",
        )
