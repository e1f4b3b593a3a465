"""Calls of networks that no process can make alone, because others hold a part of the weights, or of the tokens."""

from __future__ import annotations

from torch import nn

from alignment.meetings import Meetings


def call_together(network: nn.Module, running: str, meetings: Meetings) -> None:
    """Let the processes meet before each call of a network: what ends one is known to all before they wait for it."""

    def begin(*_: object) -> None:
        meetings.begin(running)

    def end(*_: object) -> None:
        meetings.end()

    network.register_forward_pre_hook(begin, prepend=True)
    network.register_forward_hook(end, always_call=True)
