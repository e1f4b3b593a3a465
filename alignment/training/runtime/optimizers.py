"""The rules of an update, each torch's or torchao's own, and what they remember of each weight between updates.

All of that is there before the first update. So a resumed run has it to fill, and a checkpoint always holds it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from alignment.checkpoints.parts import like, own
from alignment.config.run import Optimizer
from alignment.errors import ConfigError, EnvironmentProblem

BETAS, EPSILON, MOMENTUM = (0.9, 0.999), 1e-8, 0.95
BLOCK = 256
"""Numbers of a moment in 8 bits that share one scale."""
SMALL = 4096
"""Numbers of a weight below which its moments stay float32."""


def make(settings: Optimizer, weights: Mapping[str, nn.Parameter], *, fused: bool = False) -> torch.optim.Optimizer:
    """Return the optimiser of weights by name, with what it keeps of them at its start.

    Args:
        settings: Which, and its numbers.
        weights: What it changes.
        fused: Whether AdamW takes its fused form, which is fast on GPUs, and rounds otherwise.

    Raises:
        ConfigError: If some weight is none that it can learn.
        EnvironmentProblem: If it is not installed.
    """
    rate, decay, own_weights = settings.learning_rate, settings.weight_decay, list(weights.values())
    if settings.type == "adamw":
        form = True if fused else None  # which leaves it to torch
        adam = _adam(settings)
        made: torch.optim.Optimizer = torch.optim.AdamW(own_weights, rate, weight_decay=decay, fused=form, **adam)
    elif settings.type == "adamw8bit":
        made = _torchao().AdamW8bit(own_weights, rate, weight_decay=decay, block_size=BLOCK, **_adam(settings))
    elif settings.type == "adafactor":
        made = torch.optim.Adafactor(own_weights, rate, weight_decay=decay)
    else:
        if other := [name for name, weight in weights.items() if weight.ndim != 2]:
            raise ConfigError(
                f"optimizer.type: muon makes matrices orthogonal, and {other[0]} has shape "
                f"{list(weights[other[0]].shape)} ({len(other)} of {len(weights)} trained weights are no matrices); "
                "use adamw, or train adapters of linear layers (policy.lora: {})"
            )
        momentum = MOMENTUM if settings.momentum is None else settings.momentum
        made = torch.optim.Muon(own_weights, rate, decay, momentum, adjust_lr_fn="match_rms_adamw")
    for weight in own_weights:
        made.state[weight] = kept(settings, weight)
    return made


def _adam(settings: Optimizer) -> dict[str, Any]:
    epsilon = EPSILON if settings.epsilon is None else settings.epsilon
    return {"betas": BETAS if settings.betas is None else settings.betas, "eps": epsilon}


def _torchao() -> Any:
    if importlib.util.find_spec("torchao") is None:
        raise EnvironmentProblem(
            "optimizer.type: adamw8bit is torchao's, which is not installed; run `pip install torchao`, or use adamw"
        )
    return importlib.import_module("torchao.optim")


def kept(settings: Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """Return what an optimiser remembers of a weight before its first update, under its own names."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    shape, step = weight.shape, torch.tensor(0.0)
    match settings.type:
        case "muon":
            return {"momentum_buffer": torch.zeros_like(weight)}
        case "adafactor" if weight.ndim > 1:
            return {"step": step, "row_var": zeros(*shape[:-1], 1), "col_var": zeros(*shape[:-2], 1, shape[-1])}
        case "adafactor":
            return {"step": step, "variance": torch.zeros_like(weight)}
        case "adamw8bit":
            return {"step": step, "exp_avg": _rounded(weight, True), "exp_avg_sq": _rounded(weight, False)}
        case _:
            return {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}


def in_blocks(weight: Tensor) -> bool:
    """Return whether the moments of a weight are in 8 bits: where whole blocks make a row.

    Processes hold rows. So the blocks are the same on any number of them.
    """
    return weight.ndim > 1 and weight.numel() >= SMALL and weight[0].numel() % BLOCK == 0


def _rounded(weight: Tensor, signed: bool) -> Tensor:
    part = own(weight)
    if not in_blocks(weight) or not part.numel():
        return torch.zeros_like(weight)
    _torchao()
    state = importlib.import_module("torchao.optim.subclass_8bit").OptimState8bit
    return like(state.zeros(part.shape, signed, BLOCK, part.device, dtype=part.dtype), weight)


def plain(settings: Optimizer, weight: Tensor, entry: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield what is kept of a weight as plain tensors by name, in the very memory of it."""
    for name, moment in entry.items():
        if settings.type != "adamw8bit" or name == "step" or not in_blocks(weight):
            yield name, moment
            continue
        part: Any = own(moment)
        row = weight[0].numel() // BLOCK
        codes, scale = (part.codes, part.scale) if part.numel() else (part.byte(), part.flatten())
        yield f"{name}.codes", like(codes, weight)
        yield f"{name}.scale", like(scale.view(-1, row), weight, (weight.shape[0], row))


def moments(
    settings: Optimizer, weights: Sequence[Tensor], state: Mapping[Any, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return what an optimiser keeps, by "index.name" of the weight, in the very memory of it."""
    return {
        f"{index}.{name}": moment
        for index, weight in enumerate(weights)
        for name, moment in plain(settings, weight, state[weight])
    }


def size(settings: Optimizer, weight: Tensor) -> int:
    """Return the bytes that an optimiser keeps of a weight."""
    return sum(moment.nbytes for name, moment in plain(settings, weight, kept(settings, weight)) if name != "step")


def step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Take a step at a rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    with _uncompiled(optimizer.param_groups):
        optimizer.step()


def _uncompiled(groups: Iterable[Mapping[str, Any]]) -> Any:
    """Return the context in which torchao's rule runs as it is written on a CPU, where compiling it takes a minute."""
    torchaos = any(isinstance(group["lr"], Tensor) for group in groups)
    on_cpu = not any(weight.is_cuda for group in groups for weight in group["params"])
    return torch.compiler.set_stance("force_eager") if torchaos and on_cpu else nullcontext()
