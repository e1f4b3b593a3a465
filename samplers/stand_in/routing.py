"""Standing between a pipeline and its networks: skip a denoiser call, or run the pipeline under autocast.

A network is replaced in the pipeline by a twin: an object of a new subclass of its class that shares its `__dict__`, so
that attributes, parameters and isinstance checks are the network's, and only the call goes another way. Compilation,
hooks and sharding of the network itself stay untouched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from samplers.stand_in.conductor import Conductor
from samplers.stand_in.row_times import plainly
from samplers.stand_in.twins import twin


@dataclass(frozen=True)
class _Blank:
    """The shape of an answer, for any number of rows."""

    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def zeros(self, rows: int) -> Tensor:
        """Return zeros for `rows` rows without allocating them."""
        lead = (self.shape[0] * rows // self.rows, *self.shape[1:]) if self.shape else ()
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(lead)


def _scaled(blank: Any, rows: int) -> Any:
    """Return zeros for `rows` rows; a list of tensors holds one output per row."""

    def zeros(part: Any) -> Any:
        if isinstance(part, list):
            each = [z.zeros(z.rows) for z in part]
            return (each * rows)[: len(part) * rows // part[0].rows]
        return part.zeros(rows) if isinstance(part, _Blank) else part

    return tree_map(zeros, blank, is_leaf=lambda part: isinstance(part, list) and isinstance(part[0], _Blank))


@dataclass
class Routes:
    """What is known of a pipeline's networks, and how their calls go.

    Attributes:
        networks: Names of the pipeline's modules whose calls are routed: denoisers and what steers them.
        stubs: Whether the network is left out in a round whose output is not used. Where a pipeline keeps something
            from round to round (a cache, a moving average of guidance) its network has to run in every round.
        device: Where they run.
        autocast: Compute precision of the pipeline's networks, decoder included; null leaves it to the weights. States
            keep the pipeline's own dtype.
        blanks: For each (network, nth call of a round): the shape of its output. Filled by calls that run.
        rounds_seen: For each network, the rounds in which it was called; a network called in one round only (a text
            encoder, a VAE) is not part of the loop and is never skipped.
        listen: Called with the name of a network and the arguments of each of its calls; null for none.
    """

    networks: tuple[str, ...]
    device: torch.device
    autocast: torch.dtype | None = None
    stubs: bool = True
    blanks: dict[tuple[str, int], Any] = field(default_factory=dict)
    rounds_seen: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    listen: Callable[[str, Any], None] | None = None

    def on(self, pipe: Any, conductor: Conductor, rows: int) -> _Routed:
        """Return a context in which the networks of `pipe` answer to `conductor`."""
        return _Routed(self, pipe, conductor, rows)

    @property
    def known(self) -> bool:
        """Whether a call has run the networks, so that the next one may skip them."""
        return bool(self.blanks)

    def in_loop(self, name: str) -> bool:
        """Whether the network is called round after round."""
        return len(self.rounds_seen[name]) > 1

    def answer(self, name: str, nth: int, conductor: Conductor, rows: int, run: Callable[[], Any]) -> Any:
        """Return the network's output, or zeros of its shape in a round whose output is not used."""
        key = (name, nth)
        known = self.in_loop(name) and key in self.blanks
        if known and conductor.skipping and self.stubs:
            return self.blank(key, rows)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not (known and conductor.graphless)):
            out = self._run(run)
        self.rounds_seen[name].add(conductor.round)
        self.remember(key, rows, out)
        return out

    def remember(self, key: tuple[str, int], rows: int, out: Any) -> None:
        """Keep the shape of an output for so many rows, if it is the first."""
        if key not in self.blanks:
            self.blanks[key] = tree_map_only(Tensor, lambda z: _Blank(rows, tuple(z.shape), z.dtype, z.device), out)

    def blank(self, key: tuple[str, int], rows: int) -> Any:
        """Return zeros of the shape of that output for so many rows."""
        return _scaled(self.blanks[key], rows)

    def _run(self, run: Callable[[], Any]) -> Any:
        out = run()
        if self.autocast is None:
            return out
        return tree_map_only(Tensor, lambda z: z.float() if z.dtype == self.autocast else z, out)


class _Routed:
    """Puts the twins in place and takes them away again."""

    def __init__(self, routes: Routes, pipe: Any, conductor: Conductor, rows: int) -> None:
        self._routes, self._pipe, self._conductor, self._rows = routes, pipe, conductor, rows
        self._originals: dict[str, nn.Module] = {}
        self._calls: dict[tuple[str, int], int] = defaultdict(int)
        self._precision = torch.autocast(routes.device.type, routes.autocast, enabled=routes.autocast is not None)

    def __enter__(self) -> _Routed:
        self._precision.__enter__()
        for name in self._present(self._routes.networks):
            network = vars(self._pipe)[name]
            self._originals[name] = network
            vars(self._pipe)[name] = _twin(network, self._router(name, network))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        vars(self._pipe).update(self._originals)
        self._precision.__exit__(kind, error, trace)

    def _present(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if isinstance(vars(self._pipe).get(name), nn.Module)]

    def _router(self, name: str, network: nn.Module) -> Callable[..., Any]:
        def call(*args: object, **named: object) -> Any:
            self._conductor.open()
            nth = self._calls[name, self._conductor.round]
            self._calls[name, self._conductor.round] += 1
            args, named = plainly((args, named))
            if self._routes.listen is not None:
                self._routes.listen(name, (args, named))
            return self._routes.answer(name, nth, self._conductor, self._rows, lambda: network(*args, **named))

        return call


def _twin(network: nn.Module, call: Callable[..., Any]) -> nn.Module:
    """Return an object that is `network` in all but what calling it does."""
    body = {"__call__": lambda self, *args, **named: call(*args, **named)}
    return twin(network, f"Routed{type(network).__name__}", body)
