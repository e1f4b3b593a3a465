"""Measuring a network that has no weights: it runs on meta tensors while FLOPs and live bytes are counted.

Meta tensors have shapes and no contents. Run on them, a network calls the very operators it will call on a GPU, forward
and backward, so that what is counted needs no formula a model. Two things of a GPU have to be put in its place: fused
attention (on meta tensors torch falls back to the plain one, which keeps the whole score matrix) and autocast (which
meta tensors do not know).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from alignment.policy.networks.token_plans import ATTENTION, attention_arguments
from alignment.preflight.plan.known_outputs import META, Remembering

functional = nn.functional
_HALF = {
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
    functional.scaled_dot_product_attention,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.mm,
    torch.addmm,
    Tensor.matmul,
    Tensor.bmm,
    Tensor.__matmul__,
}
_FULL = {
    functional.layer_norm,
    functional.group_norm,
    functional.softmax,
    torch.softmax,
    Tensor.softmax,
    torch.rsqrt,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    torch.sum,
    Tensor.sum,
    torch.exp,
    Tensor.exp,
}
"""What autocast computes in half and in full precision on GPUs, as far as denoisers and decoders call it."""


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Attributes:
        flops: Floating-point operations of products, convolutions and attention, an addition and a multiplication each
            counted, as torch's own counter has them.
        bytes: The most memory that was alive at once, without what was alive before.
        fixed: The part of it that more rows do not add to: trained weights that autocast keeps in half precision.
        received: Bytes that come from other processes, which have the rest of the tokens.
    """

    flops: float = 0.0
    bytes: float = 0.0
    fixed: float = 0.0
    received: float = 0.0

    def times(self, rows: int) -> Cost:
        """Return the cost of `rows` rows at once, where this is that of one."""
        taken = self.fixed + (self.bytes - self.fixed) * rows
        return Cost(self.flops * rows, taken, self.fixed, self.received * rows)


class Meter(Remembering):
    """Counts FLOPs and follows the life of every storage made while it is entered.

    `torch.utils.flop_counter.FlopCounterMode` has the same numbers, but keeps a network's recomputed activations alive
    until its backward pass is over, which is what checkpointing is there to avoid.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._flops, self._peak, self._alive, self._before = 0.0, 0, 0, 0
        before = {storage._cdata: storage for storage in (z.untyped_storage() for z in known)}  # pyright: ignore[reportPrivateUsage]
        self._storages = set(before)
        # Weights that are stored otherwise than they compute are made anew in every call; what they replace is gone.
        self._replaced = [weakref.finalize(z, self._died, key, z.nbytes()) for key, z in before.items()]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for known in self._replaced:
            known.detach()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self._flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        self._peak = max(self._peak, self._alive)
        return out

    def lap(self) -> Cost:
        """Return what was taken since the last lap, or since the start."""
        cost = Cost(self._flops, self._peak - self._before)
        self._flops, self._peak, self._before = 0.0, self._alive, self._alive
        return cost

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key in self._storages or storage.device != META:
            return
        self._storages.add(key)
        self._alive += storage.nbytes()
        weakref.finalize(storage, self._died, key, storage.nbytes())

    def _died(self, key: int, size: int) -> None:
        self._alive -= size
        self._storages.discard(key)


class AsOnGPU(TorchFunctionMode):
    """Computes attention by the fused operator, and casts as autocast does.

    Attributes:
        autocast: Precision of products; null leaves precision to the weights.
        device: Of the tensors it casts.
    """

    def __init__(self, autocast: torch.dtype | None, device: torch.device = META) -> None:
        super().__init__()
        self.autocast, self.device = autocast, device
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given: Any = (args, dict(kwargs or {}))
        if self.autocast is not None and func in _HALF:
            given = tree_map_only(Tensor, self._halved, given)
        elif self.autocast is not None and func in _FULL:
            given = tree_map_only(Tensor, self._full, given)
        args, named = given
        if func is functional.scaled_dot_product_attention:
            return _fused_attention(attention_arguments(args, named))
        return func(*args, **named)

    @property
    def kept(self) -> int:
        """Bytes of weights it keeps in half precision."""
        return sum(tensor.nbytes for tensor in self._cast.values())

    def _halved(self, tensor: Tensor) -> Tensor:
        assert self.autocast is not None
        if tensor.dtype != torch.float32 or tensor.device != self.device:
            return tensor
        if not (tensor.requires_grad and tensor.is_leaf):
            return tensor.to(self.autocast)
        # Trained weights are cast once, as long as autocast lasts.
        key = id(tensor)
        if key not in self._cast:
            self._cast[key] = tensor.to(self.autocast)
        return self._cast[key]

    def _full(self, tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == self.autocast and tensor.device == self.device else tensor


def _fused_attention(given: Mapping[str, Any]) -> Tensor:
    """Return what `scaled_dot_product_attention` does, by the kernel that keeps no score matrix.

    Args:
        given: Its arguments by name.
    """
    query, key, value, mask = (given.get(name) for name in ATTENTION[:4])
    assert query is not None
    assert key is not None
    assert value is not None
    if given.get("enable_gqa"):
        key, value = (z.repeat_interleave(query.shape[1] // z.shape[1], 1) for z in (key, value))
    if mask is not None:  # the kernel adds it to the scores
        mask = mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    learning = torch.is_grad_enabled() and query.requires_grad
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, mask, learning, 0.0, bool(given.get("is_causal")))[0]


def forward(run: Callable[[], object], known: Iterable[Tensor], autocast: torch.dtype | None) -> tuple[Cost, Any]:
    """Run without gradient and return (cost, what came out).

    Args:
        run: Calls a network with meta tensors.
        known: What is alive anyway: weights.
        autocast: See `AsOnGPU`.
    """
    meter, gpu = Meter(known), AsOnGPU(autocast)
    with torch.no_grad(), gpu, meter:
        out = run()
    return replace(meter.lap(), fixed=gpu.kept), out


def backward(
    run: Callable[[], object], known: Iterable[Tensor], trainable: Iterable[nn.Parameter], autocast: torch.dtype | None
) -> tuple[Cost, bool]:
    """Run with gradient, forward and backward, and return (cost, whether a trained weight was reached).

    The gradients of `trainable` themselves are not in the cost: they outlive the pass.
    """
    trained = list(trainable)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    meter = Meter([*known, *(p.grad for p in trained if p.grad is not None)])
    gpu = AsOnGPU(autocast)
    with torch.enable_grad(), gpu, meter:
        roots = tuple(z for z in tree_leaves(run()) if isinstance(z, Tensor) and z.requires_grad)
        if roots:
            # `torch.autograd.backward` would run what is recomputed outside of the function mode.
            Variable._execution_engine.run_backward(  # pyright: ignore[reportPrivateUsage]
                roots,
                tuple(map(torch.empty_like, roots)),
                False,
                False,
                (),
                allow_unreachable=True,
                accumulate_grad=True,
            )
    for parameter in trained:
        parameter.grad = None
    return replace(meter.lap(), fixed=gpu.kept), bool(roots)
