"""Importing the libraries that a run is made of: most of the time before a run begins."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_WARN = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that warn, on import, of a torchao that is installed beside another torch, whether or not a run asks for it;
what a run does ask of it is refused by its key."""


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and what is built on it within this block without looking for garbage, nor being warned of torchao.

    The libraries make a million objects that stay for good. Looking through them again and again, as they grow, takes a
    sixth of the time; once they are there the collector leaves them out. Where torch has been imported before, as in a
    program that calls this one, nothing is done.
    """
    if "torch" in sys.modules:
        yield
        return
    loggers = [logging.getLogger(name) for name in _WARN]
    for logger in loggers:
        logger.addFilter(_errors_only)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for logger in loggers:
            logger.removeFilter(_errors_only)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
