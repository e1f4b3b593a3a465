"""Diffusers pipelines of every family people use, with random weights, built in code: a function builds a member.

Every function of the files beside this one that returns a `Member` builds one, so adding a family is a function. Models
are a block or two thick and sixteen numbers wide; the tokens are words of a short list; nothing is fetched.
"""

from __future__ import annotations

from tests.pipelines.zoo import caches, edits, images, videos, worlds
from tests.pipelines.zoo.member import Member, builders

ZOO = builders(images, videos, edits, caches, worlds)
"""Builders by name."""


def built(name: str) -> Member:
    """Return a member, frozen and in eval mode."""
    return ZOO[name]()


__all__ = ["ZOO", "Member", "built"]
