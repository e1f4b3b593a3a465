"""The tokens of a sample divided over a team of processes (context parallel, by the method of Ulysses).

Each process has a part of the tokens in all of a network but its attentions, and a part of the heads in those. What
enters and leaves the network is whole on each of them, so that nothing else needs to know. Every exchange has its exact
adjoint: where each process takes its share of a loss, gradients added up over the team are those of one process.
Tokens that do not divide evenly leave some with one fewer; nothing is filled up, and nothing is masked.

Source: DeepSpeed-Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from alignment.errors import PipelineError
from alignment.meetings import Meetings
from alignment.policy.networks.layout import Layout
from alignment.policy.networks.loading import attentions
from alignment.policy.networks.token_plans import (
    ATTENTION,
    COUNTING,
    TEXT,
    Cut,
    Cuts,
    TokenPlan,
    attention_arguments,
    check_divisible,
    modules_called,
)
from alignment.training.runtime.team import Team
from alignment.training.runtime.together import call_together

TOKENS = "hidden_states"
"""What diffusers calls a picture's or clip's tokens, wherever a module takes them."""


@dataclass(frozen=True)
class Divided:
    """Divides the tokens of networks that lie somehow.

    Attributes:
        layout: How the weights lie.
        team: The processes that work at the same samples.
        meetings: Where the processes meet before each call, if `layout` does not see to that; None to rehearse.
        in_step: True.
    """

    layout: Layout
    team: Team
    meetings: Meetings | None
    in_step: bool = True
    _networks: list[nn.Module] = field(default_factory=list)

    @property
    def spread(self) -> bool:
        """Whether a process holds a part of each weight only."""
        return self.layout.spread

    def place(self, network: nn.Module, trained: Collection[str]) -> None:
        """Put a network into place, and let its tokens be divided.

        Raises:
            ConfigError: If they cannot.
        """
        plan = check_divisible(network, self.team.size)
        self.layout.place(network, trained)
        _Division(type(network).__name__, plan, self.team).install(network)
        self._networks.append(network)
        if self.meetings is not None and not self.layout.in_step:
            call_together(network, f"calling network {len(self._networks)}", self.meetings)

    def exchange(self, trained: Mapping[str, nn.Parameter], frozen: dict[str, Tensor]) -> None:
        """Give trained parameters the values of a frozen copy, and the copy what they had."""
        self.layout.exchange(trained, frozen)

    def gradients(self, of: Tensor, by: Sequence[nn.Parameter], *, kept: bool) -> tuple[Tensor, ...]:
        """Return the gradients of a scalar, whole: the mean of what the scalar of each process gives."""
        found = self.layout.gradients(of, by, kept=kept)
        return found if self.layout.spread else self.team.mean(found)

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is learned."""
        return self.layout.sampling()


@dataclass
class _Division:
    """The tokens of one network."""

    network: str
    plan: TokenPlan
    team: Team
    _running: bool = False
    _inside: bool = False
    _exchanging: set[nn.Module] = field(default_factory=set)
    _entered: list[_Attending | None] = field(default_factory=list)

    def install(self, network: nn.Module) -> None:
        """Cut, exchange and join where the plan says; what is recomputed in a backward pass goes the same way."""
        network.register_forward_pre_hook(self._begin, with_kwargs=True)
        network.register_forward_hook(self._end, always_call=True)
        for pattern, cuts in self.plan.cut.items():
            for module in modules_called(network, pattern):
                module.register_forward_pre_hook(self._cut_arguments(module, cuts), with_kwargs=True)
                if any(isinstance(key, int) for key in cuts):
                    module.register_forward_hook(self._cut_outputs(cuts))
        for module in attentions(network):
            module.register_forward_pre_hook(self._enter(module), with_kwargs=True)
            module.register_forward_hook(self._leave, always_call=True)
        for pattern, dims in self.plan.joined.items():
            for module in modules_called(network, pattern):
                module.register_forward_hook(self._join_outputs(dims))

    # ---- cutting and joining -----------------------------------------------------------------------------------

    def _begin(self, network: nn.Module, args: object, kwargs: Mapping[str, Any]) -> None:
        if kwargs.get(COUNTING) is not None:
            raise PipelineError(
                f"parallel.context: a call of {self.network} counts tokens of reference pictures within its blocks "
                f"({COUNTING}: {kwargs[COUNTING]}), and would take others for them if they were divided; set "
                "parallel.context=1"
            )
        self._running, self._inside = True, False

    def _end(self, *_: object) -> None:
        self._running = self._inside = False

    def _cut_arguments(self, module: nn.Module, cuts: Cuts) -> Callable[..., Any]:
        signature = inspect.signature(module.forward)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = dict(bound.arguments)
            for name, value in given.items():
                if name in cuts:
                    bound.arguments[name] = self._cut(value, cuts[name], given)
            # A backward pass comes to modules in another order: what met whole tokens then meets them again.
            self._inside = self._inside or (self._running and TOKENS in cuts)
            return bound.args, bound.kwargs

        return before

    def _cut_outputs(self, cuts: Cuts) -> Callable[..., Any]:
        def after(module: nn.Module, args: object, out: Any) -> Any:
            several = isinstance(out, list | tuple)
            parts = [self._cut(z, cuts[k], {}) if k in cuts else z for k, z in enumerate(out if several else [out])]
            return tuple(parts) if several else parts[0]

        return after

    def _cut(self, value: Any, cut: Cut | tuple[Cut, ...], given: Mapping[str, Any]) -> Any:
        """Return a copy of this process's part of a tensor, or of each of several: the whole is then kept by nobody."""
        if isinstance(value, list | tuple):
            cuts = cut if isinstance(cut, tuple) else (cut,) * len(value)
            return tuple(self._cut(part, one, given) for part, one in zip(value, cuts, strict=True))
        if (
            not isinstance(value, Tensor)
            or not isinstance(cut, Cut)
            or (cut.dims is not None and value.ndim != cut.dims)
        ):
            return value
        pieces = [value]
        if cut.behind is not None:
            first = given[cut.behind][0].shape[0]
            pieces = list(value.split([first, value.shape[cut.dim] - first], cut.dim))
        mine = [piece.split(self.team.parts(piece.shape[cut.dim]), cut.dim)[self.team.rank] for piece in pieces]
        return torch.cat(mine, cut.dim)

    def _join_outputs(self, dims: tuple[int | None, ...]) -> Callable[..., Any]:
        def after(module: nn.Module, args: object, out: Any) -> Any:
            self._inside = False
            several = isinstance(out, list | tuple)
            told = zip(out if several else (out,), dims, strict=True)
            parts = [z if dim is None else join(self.team, z, dim) for z, dim in told]
            return tuple(parts) if several else parts[0]

        return after

    # ---- attention ---------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module) -> Callable[..., None]:
        signature = inspect.signature(module.forward)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._inside:
                self._exchanging.add(module)
            text = signature.bind(*args, **kwargs).arguments.get(TEXT)
            # Keys of the text alone are there already, unless the text is divided, too.
            exchanges = module in self._exchanging and (text is None or self.plan.texts)
            self._entered.append(_Attending(self) if exchanges else None)
            if exchanges:
                self._entered[-1].__enter__()  # pyright: ignore[reportOptionalMemberAccess]

        return before

    def _leave(self, module: nn.Module, args: object, out: Any) -> None:
        mode = self._entered.pop()
        if mode is None:
            return
        mode.__exit__(None, None, None)
        if not mode.attended and out is not None:
            raise PipelineError(
                f"parallel.context: {type(module).__name__} of {self.network} does not attend through torch's "
                "scaled_dot_product_attention, so that its tokens would not meet those of other processes; set "
                "policy.attention=native, or parallel.context=1"
            )

    def attend(self, given: Mapping[str, Any]) -> Tensor:
        """Return what `scaled_dot_product_attention` does, for this process's tokens and those of all others.

        Args:
            given: Its arguments by name; of this process's tokens, `[n, heads, tokens, width]`.
        """
        query, key, value = (given[name] for name in ATTENTION[:3])
        queries, keys = self.team.lengths(query.shape[-2], key.shape[-2])
        if given.get("is_causal") and self.plan.texts:
            raise PipelineError(f"parallel.context: attention of {self.network} is causal over text and picture")
        mask = given.get("attn_mask")
        met: dict[str, Any] = {
            "query": _to_heads(self.team, query, queries),
            "key": _to_heads(self.team, key, keys),
            "value": _to_heads(self.team, value, keys),
            "attn_mask": None if mask is None else self._mask(mask, keys),
        }
        return _to_tokens(self.team, functional.scaled_dot_product_attention(**(dict(given) | met)), queries)

    def _mask(self, mask: Tensor, keys: Sequence[int]) -> Tensor:
        """Return a mask over the tokens of all processes, in the order in which they come together."""
        if mask.ndim == 4 and mask.shape[1] > 1:
            mask = mask.tensor_split(self.team.size, 1)[self.team.rank]
        if mask.shape[-1] == sum(keys) and not self.plan.texts:
            return mask  # nobody cut it, and tokens of one kind come together as they were
        if mask.shape[-2] == 1:
            return join(self.team, mask, -1)
        # What is left is a mask between tokens, of which only this process's own are known: it has to be one that
        # leaves some of them out altogether.
        mine = mask.diagonal(dim1=-2, dim2=-1)
        if mask.dtype != torch.bool or mask.shape[-1] != mask.shape[-2] or not _outer(mine).equal(mask):
            raise PipelineError(f"parallel.context: the mask of {self.network} is not one that leaves tokens out")
        return _outer(join(self.team, mine, -1))


class _Attending(TorchFunctionMode):
    """Lets attention go by way of a division, in this thread alone."""

    def __init__(self, division: _Division) -> None:
        super().__init__()
        self._division, self.attended = division, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.attended = True
        return self._division.attend(attention_arguments(args, kwargs or {}))


def _outer(kept: Tensor) -> Tensor:
    return kept[..., :, None] & kept[..., None, :]


def join(team: Team, part: Tensor, dim: int) -> Tensor:
    """Return what all processes have of a tensor, one after the other along an axis.

    Each of them is sent a copy, so that the gradients they all have of it come back here.
    """
    (lengths,) = team.lengths(part.shape[dim])
    rows = part.movedim(dim, 0)
    copies = rows.expand(team.size, *rows.shape).flatten(0, 1)
    if rows.dtype == torch.bool:
        copies = copies.to(torch.uint8)
    joined = team.exchange(copies, [len(rows)] * team.size, lengths)
    return joined.to(part.dtype).movedim(0, dim)


def _to_heads(team: Team, part: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return this process's heads of all tokens, of all heads of this process's tokens: `[n, heads, tokens, width]`."""
    mine = part.unflatten(1, (team.size, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return team.exchange(mine, [part.shape[-2]] * team.size, lengths).permute(1, 2, 0, 3)


def _to_tokens(team: Team, part: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return all heads of this process's tokens, of this process's heads of all tokens."""
    count = lengths[team.rank]
    mine = team.exchange(part.permute(2, 0, 1, 3), lengths, [count] * team.size)
    return mine.unflatten(0, (team.size, count)).permute(2, 0, 3, 1, 4).flatten(1, 2)
