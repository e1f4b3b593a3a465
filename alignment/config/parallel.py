"""How the work of a run is divided among its processes: plain data, and the arithmetic of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from alignment.errors import FieldError
from alignment.policy.networks.spec import PolicySpec

Share = int | Literal["auto"] | None
_SIZES = ("DP_SHARD", "DP_REPLICATE", "TP", "CP", "SP")


@dataclass(frozen=True)
class Parallel:
    """Among how many processes the trained networks are spread; samples are divided among all of them.

    Attributes:
        shard: Processes that hold the trained networks together: weights, gradients, optimiser state and frozen copies,
            a part each (FSDP2). "auto" takes all that `replicate` leaves; null takes what accelerate was told, or 1:
            every process has all of them.
        replicate: How many such sets of processes there are (hybrid sharding). "auto" and null take what `shard`
            leaves.
        stay_gathered: Whether a process keeps the whole weights while it samples, once it has gathered them: faster
            where they fit, for sampling learns nothing and needs no room for gradients.
    """

    shard: Share = None
    replicate: Share = None
    stay_gathered: bool = False

    def __post_init__(self) -> None:
        for name, count in {"shard": self.shard, "replicate": self.replicate}.items():
            if isinstance(count, int) and count < 1:
                raise FieldError(name, f'got {count}, expected a number of processes of at least 1, "auto" or null')


@dataclass(frozen=True)
class Division:
    """The numbers that a description comes to.

    Attributes:
        shard: Processes that hold the networks together.
        replicate: Sets of them.
    """

    shard: int
    replicate: int


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
        if others := [f"{name.lower()}_size {sizes[name]}" for name in ("TP", "CP", "SP") if sizes[name] > 1]:
            raise FieldError(
                "parallel", f"accelerate was launched with {', '.join(others)}; only dp_shard and dp_replicate are used"
            )
        told = Parallel(sizes["DP_SHARD"], sizes["DP_REPLICATE"])
    for name, ours, theirs in (
        ("shard", parallel.shard, told.shard),
        ("replicate", parallel.replicate, told.replicate),
    ):
        if isinstance(ours, int) and isinstance(theirs, int) and ours != theirs:
            raise FieldError(
                f"parallel.{name}", f"it is {ours}, but accelerate was launched with {theirs}; say it in one place"
            )
    shard = told.shard if parallel.shard is None else parallel.shard
    return replace(
        parallel, shard=shard, replicate=told.replicate if parallel.replicate is None else parallel.replicate
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
    return Division(shard, replicate)


def problems(
    parallel: Parallel, policy: PolicySpec, needs_whole: Mapping[str, str], processes: int
) -> Iterator[tuple[str, str]]:
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
    if division.shard == 1:
        return
    for key, why in needs_whole.items():
        yield key, f"{why}, or parallel.shard=1 (it is {division.shard})"
    if policy.lora is not None and policy.lora.merge:
        yield (
            "policy.lora.merge",
            f"adapters cannot be folded into weights of which {division.shard} processes hold a part each "
            "(parallel.shard); set policy.lora.merge=false",
        )
    if any(adapter.when == "sampling" for adapter in policy.adapters):
        yield (
            "policy.adapters",
            f"one with when: sampling cannot be put in and out of weights of which {division.shard} processes hold a "
            "part each (parallel.shard); use when: always, or parallel.shard=1",
        )
    if policy.quantize is not None:
        yield (
            "policy.quantize",
            f"weights of {policy.quantize} cannot be spread over processes (parallel.shard: {division.shard}); spread "
            "them unrounded, policy.quantize=null, or keep them whole, parallel.shard=1",
        )
    if policy.compile:
        yield (
            "policy.compile",
            f"networks that are spread over processes (parallel.shard: {division.shard}) are not compiled as one; set "
            "policy.compile=false, or parallel.shard=1",
        )
