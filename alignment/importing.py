"""Importing the libraries that a run is made of: most of the time before a run begins."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and what is built on it within this block, without looking for garbage.

    The libraries make a million objects that stay for good. Looking through them again and again, as they grow, takes a
    sixth of the time; once they are there the collector leaves them out. Where torch has been imported before, as in a
    program that calls this one, nothing is done.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
