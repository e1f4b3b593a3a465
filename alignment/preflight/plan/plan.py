"""`visalign plan`: what a run takes, before anything is loaded: parameters, FLOPs, memory and time of a step.

A step is rehearsed on the pipeline's own classes without weights (`rehearsal`); this module adds up what the
rehearsal saw, phase by phase, and compares it with a GPU.
"""

from __future__ import annotations

import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from alignment.config.parallel import Division, divide, problems
from alignment.config.run import Run
from alignment.data.batches import Example
from alignment.data.media import Picture
from alignment.data.prompts import Prompts
from alignment.errors import ConfigError
from alignment.policy.networks.loading import no_progress_bars
from alignment.policy.policy import Policy
from alignment.preflight.plan.blueprint import stand_in_prompts
from alignment.preflight.plan.counts import StepCounts
from alignment.preflight.plan.gpus import GPU
from alignment.preflight.plan.rehearsal import Rehearsal
from alignment.preflight.plan.spread import FULL, Spread, Traffic, spread, traffic
from alignment.training.runtime import optimizers
from alignment.training.setup import read_data

STEPS = 4
"""Steps that are rehearsed, evenly over the run: windows move, and their costs with them."""

ROUNDED = {"8bit": 1.0, "4bit": 0.5625}
"""Bytes of a weight of a linear layer, by `policy.quantize`: NF4 has a float32 for each 64 weights of half a byte."""

GATHERED = "gathered weights"
"""Of networks that are spread over processes: what is whole for a while, beside a process's own part."""

Parts = Mapping[str, float]


@dataclass(frozen=True)
class Setup:
    """On what a run is planned.

    Attributes:
        gpu: The kind of GPU.
        gpus: How many.
        peak_fraction: Share of the GPU's peak FLOP/s that is reached, in (0, 1].
        bandwidth: GB/s that a GPU receives of others; null takes what its links are sold as.
    """

    gpu: GPU
    gpus: int = 1
    peak_fraction: float = 0.4
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"--gpus: got {self.gpus}, expected at least 1")
        if not 0 < self.peak_fraction <= 1:
            raise ConfigError(f"--peak-fraction: got {self.peak_fraction}, expected a number above 0, up to 1")
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise ConfigError(f"--bandwidth: got {self.bandwidth}, expected a number of GB/s above 0")

    @property
    def link(self) -> float:
        """Bytes per second that a GPU receives of others."""
        return self.gpu.link if self.bandwidth is None else self.bandwidth * 1e9


@dataclass(frozen=True)
class Network:
    """One network of the pipeline.

    Attributes:
        name: Its component name.
        kind: Its class.
        parameters: How many, adapters included.
        trained: How many of them are trained.
        bytes: What they take.
    """

    name: str
    kind: str
    parameters: int
    trained: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        name: Of the run.
        pipeline: What it aligns, and its class.
        rounds: Denoising steps of a call.
        latent: Shape of a sample's latents.
        setup: On what.
        division: How the trained networks are spread over the GPUs.
        networks: The pipeline's networks.
        flops: Of one step on one GPU: rollout, decode, reward, update.
        memory: Bytes on one GPU, the fullest, by phase of a step and by part.
        traffic: Bytes that reach one GPU from others.
        notes: What is not in the numbers.
    """

    name: str
    pipeline: tuple[str, str]
    rounds: int
    latent: tuple[int, ...]
    setup: Setup
    division: Division
    networks: Sequence[Network]
    flops: Parts
    memory: Mapping[str, Parts]
    traffic: Traffic
    half: bool
    notes: Sequence[str]

    @property
    def peak_phase(self) -> str:
        """The phase that takes most memory."""
        return max(self.memory, key=lambda phase: sum(self.memory[phase].values()))

    @property
    def peak_bytes(self) -> float:
        """The most memory that is taken at once."""
        return sum(self.memory[self.peak_phase].values())

    @property
    def seconds(self) -> Parts:
        """Time of each part of a step, at the stated share of the GPU's peak."""
        peak = (self.setup.gpu.half if self.half else self.setup.gpu.full) * self.setup.peak_fraction
        return {name: flops / peak for name, flops in self.flops.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        setup, whole = self.setup, sum(self.flops.values())
        return {
            "name": self.name,
            "pipeline": {"path": self.pipeline[0], "class": self.pipeline[1]},
            "rounds": self.rounds,
            "latent": list(self.latent),
            "gpu": setup.gpu.name,
            "gpus": setup.gpus,
            "parallel": asdict(self.division),
            "parameters": {n.name: {"total": n.parameters, "trained": n.trained} for n in self.networks},
            "flops_per_step": {**self.flops, "total": whole},
            "peak_fraction": setup.peak_fraction,
            "seconds_per_step": {**self.seconds, "total": sum(self.seconds.values())},
            "memory": {phase: {**parts, "total": sum(parts.values())} for phase, parts in self.memory.items()},
            "peak": {"phase": self.peak_phase, "bytes": self.peak_bytes, "fits": self.peak_bytes < setup.gpu.memory},
            "communication": {
                "bytes_per_call": {"sampling": self.traffic.sampling, "learning": self.traffic.learning},
                "bytes_per_row": {"sampling": self.traffic.row_sampling, "learning": self.traffic.row_learning},
                "bytes_per_step": self.traffic.step,
                "bandwidth": setup.link,
                "seconds_per_step": self.traffic.step / setup.link,
            },
            "notes": list(self.notes),
        }


def plan(run: Run, setup: Setup) -> Plan:
    """Return what a run takes.

    Raises:
        ConfigError: If it keeps the graph of what is not rehearsed, or cannot be spread over so many GPUs.
    """
    for key, message in problems(run.parallel, run.policy, run.optimizer.needs_whole, setup.gpus):
        raise ConfigError(f"{key}: {message} (planned for --gpus {setup.gpus})")
    if run.objective.differentiates:
        raise ConfigError(
            f"objective: {type(run.objective).__name__} keeps the graph of decoder and reward model, whose size is not "
            "planned yet; see memory/peak_bytes of a run with steps=2"
        )
    division = divide(run.parallel, setup.gpus)
    with _quietly(), tempfile.TemporaryDirectory() as folder:
        prompts, notes = _prompts(run, Path(folder))
        rehearsal = Rehearsal(run, prompts, division)
        chosen = sorted({round(i * (run.steps - 1) / max(STEPS - 1, 1)) for i in range(STEPS)})
        steps = [rehearsal.step(number) for number in chosen]
    policy, door = rehearsal.policy, rehearsal.door
    networks = [_network(name, part, policy) for name, part in door.networks.items()]
    over = spread(policy, division, stays=run.parallel.stay_gathered)
    flops, reward_notes = _flops(rehearsal, steps)
    return Plan(
        run.name,
        (run.policy.pipeline, type(policy.pipe).__name__),
        policy.rounds,
        tuple(door.latent),
        setup,
        over.division,
        networks,
        flops,
        _memory(rehearsal, steps, networks, over),
        traffic(over, steps, run.batch.updates),
        run.policy.autocast is not None or run.policy.dtype != "float32",
        [*notes, *reward_notes, *_offloaded(rehearsal, over)],
    )


def _prompts(run: Run, folder: Path) -> tuple[Prompts, list[str]]:
    """Return the run's prompts, or some in place of a file that is not there yet."""
    if Path(run.data.prompts).exists():
        return read_data(replace(run, data=replace(run.data, dedupe="drop"))), []
    made = stand_in_prompts(run.policy, folder)
    made = replace(made, examples=(Example((Picture(folder, "", (1, 1)),) * len(run.source.media)),))
    return made, [f"there is no file {run.data.prompts}: planned with a prompt of {len(made.texts[0].split())} words"]


def _network(name: str, part: nn.Module, policy: Policy) -> Network:
    trained = {id(p) for p in policy.trainable.values()}
    parameters = list(part.parameters())
    taken = sum(p.nbytes for p in parameters)
    each = ROUNDED.get(policy.spec.quantize or "")
    if each is not None and name in policy.experts:
        linear = [m.weight for m in part.modules() if isinstance(m, nn.Linear) and id(m.weight) not in trained]
        taken += sum(each * weight.numel() - weight.nbytes for weight in linear)
    return Network(
        name,
        type(part).__name__,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if id(p) in trained),
        int(taken),
    )


def _flops(rehearsal: Rehearsal, steps: Sequence[StepCounts]) -> tuple[dict[str, float], list[str]]:
    """Return the mean FLOPs of a step, and what is not in them."""
    door, count = rehearsal.door, len(steps)
    phases = {
        phase: sum(e.cost.flops for step in steps for e in step.events if e.phase == phase) / count
        for phase in ("rollout", "update")
    }
    calls = [call for step in steps for call in step.calls]
    encoded = {p: sum(door.before.of(c.rows).flops for c in calls if c.phase == p) / count for p in phases}
    encoded["rollout"] += sum(step.encoded for step in steps) / count * door.encoding.flops
    decoded = sum(door.after.of(c.rows).flops for c in calls if c.decodes) / count
    scored = sum(step.scored for step in steps) / count
    reward_model = rehearsal.run.source.reward
    size = None if reward_model is None else reward_model.size()
    silent = reward_model is not None and not size
    notes = [f"{reward_model} does not say how large it is: its memory and time are 0 here"] if silent else []
    reward = scored * door.frames * size.flops if size else 0.0
    return {
        "rollout": phases["rollout"] + encoded["rollout"],
        "decode": decoded,
        "reward": reward,
        "update": phases["update"] + encoded["update"],
    }, notes


def _memory(
    rehearsal: Rehearsal, steps: Sequence[StepCounts], networks: Sequence[Network], over: Spread
) -> dict[str, dict[str, float]]:
    """Return the bytes of one GPU by phase and part."""
    policy, door = rehearsal.policy, rehearsal.door
    weights, trained = sum(n.bytes for n in networks if n.name in policy.experts), over.trained
    texts = sum(n.bytes for n in networks if n.name.startswith("text_encoder"))
    others = sum(n.bytes for n in networks) - weights - texts
    held = weights if over.division.shard == 1 else over.held
    if policy.spec.offload:
        texts, others = 0, 0
    size = None if rehearsal.run.source.reward is None else rehearsal.run.source.reward.size()
    always = {
        f"{policy.component} weights": held,
        "other networks": others + (0 if policy.embeddings.cacheable else texts),
        "reward models": size.bytes if size else 0,
        "frozen copies": len(policy.snapshots) * trained,
        "optimizer": 0.0 if rehearsal.run.optimizer.offload else _remembered(rehearsal, over),
    }
    lora = rehearsal.run.policy.lora
    folded = (
        sum(layer.get_base_layer().weight.nbytes for layer in policy.weights.adapters) if lora and lora.merge else 0
    )
    kept = {"trajectories": max(step.kept for step in steps) if policy.spec.trajectories == "device" else 0}
    # Fused rules make nothing on their way, others a few tensors of the size of the weight at hand.
    largest = FULL * max(weight.numel() for weight in policy.trainable.values())
    rule = rehearsal.run.optimizer
    making = 0.0 if rule.offload or rule.type.startswith("adamw") else 2.0 * largest
    gathered, leaving = over.learning
    gradients, passing = {"gradients": trained}, {GATHERED: gathered, "gradients on their way": leaving}
    calls = [call for step in steps for call in step.calls]
    encoding = max(door.encoding.bytes, *(door.before.of(call.rows).bytes for call in calls))
    decoding = max((door.after.of(call.rows).bytes for call in calls if call.decodes), default=0)
    events = [event for step in steps for event in step.events]
    sampling, learning = (
        max((e.cost.bytes - over.halved * e.cost.fixed for e in events if e.phase == phase), default=0)
        for phase in ("rollout", "update")
    )
    phases: dict[str, dict[str, float]] = {
        "loading": {f"{policy.component} weights": held + over.moved, "other networks": others, "text encoders": texts},
        "rollout": always | {GATHERED: over.sampling, "merged adapters": folded, "activations": sampling} | kept,
        "decode": always | {GATHERED: over.decoding, "merged adapters": folded, "activations": decoding} | kept,
        "update": always | gradients | passing | {"activations": learning} | kept,
        "optimizer step": always | gradients | {"temporaries": making} | kept,
    }
    if door.encoding.flops or door.before.one.flops:
        phases["encode"] = always | {"activations": encoding}
    return {phase: {name: size for name, size in parts.items() if size} for phase, parts in phases.items()}


def _remembered(rehearsal: Rehearsal, over: Spread) -> float:
    """Return the bytes that the optimiser keeps on one GPU."""
    learned = list(rehearsal.policy.trainable.values())
    kept = sum(optimizers.size(rehearsal.run.optimizer, weight) for weight in learned)
    return kept * over.trained / sum(FULL * weight.numel() for weight in learned)


def _offloaded(rehearsal: Rehearsal, over: Spread) -> Iterator[str]:
    if rehearsal.run.optimizer.offload:
        taken = 2 * over.trained + _remembered(rehearsal, over)
        yield (
            f"optimizer.offload takes {taken / 1e9:.3g} GB of main memory for each GPU: a copy of the weights and "
            "their gradients, and what the optimiser keeps"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what libraries say of loading and of precision from the tables."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), no_progress_bars():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
