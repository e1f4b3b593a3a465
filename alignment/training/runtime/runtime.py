"""The edge to accelerate and torch.distributed: processes, the optimiser, one update.

Gradients are reduced by hand after accumulation. A DistributedDataParallel wrapper would hide the denoiser's attributes
from its pipeline, and gives silently wrong gradients for the pipelines that leave some parameters without one.
"""

from __future__ import annotations

import itertools
import os
import resource
from datetime import timedelta

import torch
import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store  # pyright: ignore[reportPrivateUsage]  # no other way to it

from alignment.checkpoints.parts import whole
from alignment.config.parallel import as_launched, divide
from alignment.config.run import Optimizer, Run
from alignment.errors import EnvironmentProblem, NumericsError
from alignment.meetings import Meetings
from alignment.objectives.base import Loss
from alignment.policy.policy import Policy
from alignment.sources.base import PREVIOUS
from alignment.training.runtime import optimizers
from alignment.training.runtime.averages import Averages
from alignment.training.runtime.offloaded import Offloaded
from alignment.training.runtime.scaling import Scale
from alignment.training.runtime.sharded import LEARNING
from alignment.training.stopping import StopSignal
from alignment.world import World
from reward_models.foreign import first_line
from samplers.kernels.dispatch import INSTALLED, choose, interpreted

_MAX_SKIPPED = 3
"""Updates in a row that may be skipped for gradients that are not finite."""

_LATER = 60.0
"""Seconds after the run's own timeout, which names who is waited for, that the process group's follows."""

_generations = itertools.count()  # of meetings in one process group, should a program make several runtimes


class Runtime:
    """This process's share of training.

    Attributes:
        world: The processes.
        division: How work is divided over them.
        optimizer: Over the policy's trained weights, or their copies in main memory, once `attach` was called.
        scale: Of losses, where gradients pass through float16; None elsewhere.
        taken: Updates that were begun so far.
    """

    def __init__(self, run: Run, stop: StopSignal | None = None) -> None:
        """Join the other processes; `stop` knows whether this one was asked to leave."""
        if run.device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentProblem("device: cuda was asked for, but torch sees no GPU; set device to auto or cpu")
        _check_kernels(run)
        choose(run.kernels)
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        self._accelerator = _connected(run)
        state = PartialState()
        _check_world(state.num_processes)
        self.division = divide(as_launched(run.parallel, os.environ), state.num_processes)
        meetings = _meetings(state, run.timeout, stop)
        spread, team = self.division.shard > 1, self.division.context
        self.world = World(state, self._accelerator.device, meetings, spread, team)
        self._metrics = Averages()
        self._updates = 0
        self._skipped = 0
        self.taken = 0

    @property
    def main(self) -> bool:
        """Whether this process records and saves."""
        return self._accelerator.is_main_process

    def attach(self, policy: Policy, settings: Optimizer) -> None:
        """Make the optimiser of `policy`.

        Raises:
            ConfigError: If it cannot learn these weights.
            EnvironmentProblem: If it is not installed.
        """
        self._policy, self._settings = policy, settings
        self.scale = Scale() if policy.spec.precision is torch.float16 else None
        self._offloaded = Offloaded.of(policy.trainable) if settings.offload else None
        held = policy.trainable if self._offloaded is None else self._offloaded.copies
        fused = self.world.device.type == "cuda"
        self.optimizer, self._held = optimizers.make(settings, held, fused=fused), list(held.values())

    def moments(self) -> dict[str, Tensor]:
        """Return what the optimiser keeps of each weight, by "index.name", to be read and to be filled."""
        return optimizers.moments(self._settings, self._held, self.optimizer.state)

    def learn(self, loss: Loss, rows: int) -> None:
        """Run the backward pass of `loss`, as a share of an update over `rows` rows of all processes.

        Processes of a team have the same rows, and take a share each.
        """
        self._backward(loss.per_row.sum() / rows / self.world.team)
        later = self._updates > 0
        metrics = {k: v for k, v in loss.metrics.items() if not (later and k.startswith("ratio/first_"))}
        self._metrics.add({"loss": loss.per_row.detach(), **metrics})

    def follow(self, loss: Loss) -> None:
        """Run the backward pass of `loss` for nothing, because other processes run theirs."""
        self._backward(0.0 * loss.per_row.sum())

    def _backward(self, share: Tensor) -> None:
        share = share if self.scale is None else share * self.scale.factor
        if not self.world.in_step:
            share.backward()
            return
        if self.world.spread:  # then gradients come back as means over the processes
            share = share * self.world.processes
        with self.world.exchange(LEARNING):
            share.backward()

    def update(self, learning_rate: float) -> float:
        """Reduce and clip the gradients, take a step, and return their norm before clipping.

        Gradients that are not finite on any process are skipped on all, and counted.

        Raises:
            NumericsError: After several such updates in a row.
        """
        parameters = list(self._policy.trainable.values())
        self._reduce_gradients(parameters)
        if self.scale is not None:
            for p in parameters:
                if p.grad is not None:
                    p.grad.div_(self.scale.factor)
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_grad_norm))
        finite = bool(norm.isfinite())
        if self._updates == 0 and PREVIOUS in self._policy.snapshots:
            self._policy.weights.refresh(PREVIOUS, decay=0.0)  # here, so that a step is whole before it and not after
        self.taken += 1
        if finite:
            self._step(learning_rate)
        for parameter in parameters:
            parameter.grad = None
        wanting = not finite and (self.scale is None or self.scale.least)
        self._skipped = self._skipped + 1 if wanting else 0
        if self._skipped >= _MAX_SKIPPED:
            raise NumericsError(
                f"{_MAX_SKIPPED} updates in a row had gradients that are not finite; lower optimizer.learning_rate, or "
                "compute in float32 (policy.autocast: null)"
            )
        self._updates += 1
        self._metrics.add({"grad/norm": norm.detach(), "updates/skipped": torch.tensor(float(not finite))})
        if self.scale is not None:
            self._metrics.add({"grad/scale": torch.tensor(self.scale.factor)})
            self.scale.learned(finite=finite)
        return norm.item()

    def _step(self, learning_rate: float) -> None:
        if self._offloaded is None:
            optimizers.step(self.optimizer, learning_rate)
            return
        self._offloaded.bring()
        optimizers.step(self.optimizer, learning_rate)
        self._offloaded.give_back()

    def _reduce_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        # A weight without a gradient gets zeros on one process too, or weight decay would see how many there are.
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if not self.world.spread:  # there they are added up on their way
            self.world.add_up(p.grad for p in parameters if p.grad is not None)

    def metrics(self) -> dict[str, float]:
        """Return the averages since the last call, over all processes."""
        self._updates = 0
        return self._metrics.take(self.world)

    def wait(self) -> None:
        """Wait for the other processes."""
        self.world.wait("starting together")

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set on any process."""
        return any(self.world.each(flag))

    def close(self) -> None:
        """Leave the process group."""
        self._accelerator.end_training()


def _meetings(state: PartialState, timeout: float, stop: StopSignal | None) -> Meetings | None:
    if state.num_processes == 1:
        return None
    # By a connection of its own: torch keeps its one for itself while it makes processes known to each other.
    store = torch.distributed.PrefixStore(f"visalign/{next(_generations)}", _get_default_store().clone())
    asked = (lambda: None) if stop is None else stop.asked
    return Meetings(store, state.process_index, state.num_processes, timeout, asked)


def _connected(run: Run) -> Accelerator:
    """Return accelerate's view of the processes, connected with each other.

    Raises:
        EnvironmentProblem: If they do not find each other.
    """
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=run.timeout + _LATER))
    try:
        return Accelerator(cpu=run.device == "cpu" or not torch.cuda.is_available(), kwargs_handlers=[patience])
    except RuntimeError as error:
        environment = os.environ
        if "WORLD_SIZE" not in environment:
            raise
        who = f"process {environment.get('RANK')} of {environment['WORLD_SIZE']}"
        where = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        again = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        raise EnvironmentProblem(
            f"{who} could not connect to the others, who meet at {where}: "
            f"{first_line(error, 'no reason given')}. See that this address can be reached, and "
            "by which network: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
            + ("; torchrun started it again: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun" if again else "")
        ) from error


def _check_world(size: int) -> None:
    """Refuse a launcher that asked for processes and got fewer."""
    environment = os.environ
    asked = int(environment.get("WORLD_SIZE", "1"))
    if asked != size:
        raise EnvironmentProblem(f"the launcher asked for {asked} processes but {size} met; unset WORLD_SIZE for one")
    # `accelerate launch --cpu --num_processes 2` starts one without a word; an address to meet at gives it away.
    if size == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= environment.keys() and "WORLD_SIZE" not in environment:
        raise EnvironmentProblem(
            "accelerate was asked for several processes and started one, as it does on CPUs; launch with "
            "`torchrun --nproc_per_node N -m alignment.train CONFIG`, or for one process unset MASTER_ADDR"
        )


def _check_kernels(run: Run) -> None:
    """Refuse kernels that cannot run here."""
    if run.kernels != "triton":
        return
    if not INSTALLED:
        raise EnvironmentProblem("kernels: triton is not installed; `pip install triton`, or set kernels to auto")
    if (run.device == "cpu" or not torch.cuda.is_available()) and not interpreted():
        raise EnvironmentProblem("kernels: triton needs a GPU, and this run has none; set kernels to auto or torch")


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """Return the rate of a step: linear warm-up, then a line from the peak to `final` times it."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    progress = step / max(1, steps - 1)
    return settings.learning_rate * warm * (1 - (1 - settings.final) * progress)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: of the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
