"""What a process holds of networks that are spread over several, what it gathers of them, and what is sent for it.

The rules are FSDP2's: each weight is cut along its first dimension into as many rows for every process, the last ones
filled up; a block is whole only while it runs, and the next one is already on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from alignment.config.parallel import Division
from alignment.policy.policy import Policy
from alignment.preflight.plan.counts import StepCounts
from alignment.training.runtime.sharded import repeated_blocks

FULL = 4
"""Bytes of a float32: trained weights, their gradients and AdamW's moments."""

HALF = 2
"""Bytes of a bfloat16."""


@dataclass(frozen=True)
class Part:
    """What is gathered at once of a network: a block, or all that is in none. In bytes, of the fullest process.

    Attributes:
        held: What a process holds of its weights.
        gathered: All of its weights, in the precision in which they run.
        gradients: The gradients of those that are trained, in the same precision.
        summed: Those in float32, in which they are added up over processes.
        trained: What a process holds of the trained weights, in float32.
    """

    held: float
    gathered: float
    gradients: float
    summed: float
    trained: float


@dataclass(frozen=True)
class Spread:
    """The trained networks over the processes of a run.

    Attributes:
        division: The processes.
        parts: By network; what is in no block comes last.
        halved: Whether trained weights are gathered in half precision, so that autocast has nothing to cast.
        stays: Whether what was gathered stays while samples are made.
    """

    division: Division
    parts: Mapping[str, Sequence[Part]]
    halved: bool
    stays: bool

    @property
    def held(self) -> float:
        """Bytes of weights that a process holds."""
        return sum(part.held for parts in self.parts.values() for part in parts)

    @property
    def trained(self) -> float:
        """Bytes that one float32 a trained weight takes on a process: gradients, a frozen copy, a moment."""
        return sum(part.trained for parts in self.parts.values() for part in parts)

    @property
    def moved(self) -> float:
        """Bytes of the largest part, which is on the device as a whole before the processes divide it."""
        return self._most(lambda parts: self.division.shard * max(part.held for part in parts))

    @property
    def sampling(self) -> float:
        """Bytes that are gathered while the networks run without gradient."""
        everything = sum(part.gathered for parts in self.parts.values() for part in parts)
        return self._most(_on_its_way) + everything if self.stays else self._most(_forward)

    @property
    def decoding(self) -> float:
        """Bytes that are gathered still when the networks have run."""
        return self.sampling if self.stays else 0.0

    @property
    def learning(self) -> tuple[float, float]:
        """Bytes of gathered weights, and of gradients on their way into parts, where both together are most."""
        if self.division.shard == 1:
            return 0.0, 0.0
        return max((moment for parts in self.parts.values() for moment in _backward(parts)), key=sum)

    def _most(self, taken: Callable[[Sequence[Part]], float]) -> float:
        """Return what is taken by the network that takes most; networks that are not divided take nothing more."""
        return max(map(taken, self.parts.values())) if self.division.shard > 1 else 0.0


def _on_its_way(parts: Sequence[Part]) -> float:
    return max(part.gathered for part in parts)


def _forward(parts: Sequence[Part]) -> float:
    """Return the bytes of what is in no block, of the block at work, and of what it was gathered into."""
    *blocks, rest = parts
    return rest.gathered + (2 * _on_its_way(blocks) if blocks else rest.gathered)


def _backward(parts: Sequence[Part]) -> Iterator[tuple[float, float]]:
    """Yield the bytes of gathered weights and of gradients on their way, moment by moment of a pass."""
    *blocks, rest = parts
    yield _forward(parts), 0.0
    none = Part(0, 0, 0, 0, 0)
    for before, block, after in zip([none, *blocks], blocks, [*blocks[1:], none], strict=False):
        # The block computes while the one before it is gathered and the sums of the one after it leave; then it leaves.
        yield rest.gathered + block.gathered + before.gathered, rest.gradients + block.gradients + after.summed
        yield rest.gathered + before.gathered, rest.gradients + block.gradients + block.summed
    yield rest.gathered, rest.gradients + (blocks[0].summed if blocks else 0.0)
    yield 0.0, rest.gradients + rest.summed


def spread(policy: Policy, division: Division, *, stays: bool) -> Spread:
    """Return how the trained networks of a policy lie over processes."""
    trained = {id(p) for p in policy.trainable.values()}
    halved = False
    parts: dict[str, list[Part]] = {}
    for name, network in policy.experts.items():
        # As the runtime does: a network is gathered in half precision if all of it is trained under autocast.
        halved = policy.spec.autocast is not None and all(id(p) in trained for p in network.parameters())
        parts[name] = [_part(own, trained, division.shard, halved=halved) for own in _gathered_at_once(network)]
    several = division.shard > 1
    return Spread(division, parts, halved and several, stays and several)


def _gathered_at_once(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    taken: set[int] = set()
    for part in [*repeated_blocks(network), network]:
        own = [p for p in part.parameters() if id(p) not in taken]
        taken.update(map(id, own))
        yield own


def _part(own: Sequence[nn.Parameter], trained: set[int], shard: int, *, halved: bool) -> Part:
    shares = [(p, -(-p.shape[0] // shard) * (p.numel() // p.shape[0])) for p in own]  # rounded up to whole rows
    learned = [(p, share) for p, share in shares if id(p) in trained]
    each = {id(p): HALF if halved else p.itemsize for p in own}
    return Part(
        held=sum(share * p.itemsize for p, share in shares),
        gathered=sum(shard * share * each[id(p)] for p, share in shares),
        gradients=sum(p.numel() * each[id(p)] for p, _ in learned),
        summed=sum(shard * share * FULL for _, share in learned),
        trained=sum(share * FULL for _, share in learned),
    )


@dataclass(frozen=True)
class Traffic:
    """Bytes that reach a process from others.

    Attributes:
        sampling: In a call of the main network without gradient.
        learning: In one with, forward and backward.
        step: In one step.
        row_sampling: Of each row in a round without gradient, where processes share its tokens.
        row_learning: In one with.
    """

    sampling: float
    learning: float
    step: float
    row_sampling: float = 0.0
    row_learning: float = 0.0


def traffic(spread: Spread, steps: Sequence[StepCounts], updates: int) -> Traffic:
    """Return what goes over the links between processes.

    Args:
        spread: The networks.
        steps: What rehearsed steps call; their mean is taken.
        updates: Of one step.
    """
    shard, replicate = spread.division.shard, spread.division.replicate
    around = 2 * (replicate - 1) / replicate  # an all-reduce takes its bytes once around, twice
    forward = {name: (shard - 1) / shard * sum(p.gathered for p in parts) for name, parts in spread.parts.items()}
    summed = {name: sum(p.trained for p in parts) for name, parts in spread.parts.items()}
    # Gathered, gathered again for the backward pass, and gradients added up; without shards that is once an update.
    both = {n: 2 * forward[n] + (shard - 1 + around) * summed[n] if shard > 1 else 0.0 for n in forward}
    sent = 0.0
    for step in steps:
        used = {name for e in step.events if e.phase == "rollout" for name in e.networks}
        if spread.stays:
            sent += sum(forward[name] for name in used) * sum(call.phase == "rollout" for call in step.calls)
        events = [e for e in step.events if not (spread.stays and e.phase == "rollout")]
        sent += sum((both if e.grad else forward)[name] for e in events for name in e.networks)
    main = next(iter(forward))
    once = around * sum(summed.values()) * updates if shard == 1 else 0.0
    rounds = [event for step in steps for event in step.events]
    sent += sum(e.cost.received for e in rounds)
    a_row = [max((e.cost.received / e.rows for e in rounds if e.grad is grad), default=0.0) for grad in (False, True)]
    return Traffic(forward[main], both[main], sent / len(steps) + once, *a_row)
