"""How the warnings of Python and of libraries reach a user of the command line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.reports.terminal import visible

_OF_TORCHAO = ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that warn when torchao is imported beside another torch than its own. diffusers imports it wherever it is
installed; a run that asks for it and cannot have it is refused by its key."""


@contextmanager
def warned_plainly() -> Iterator[None]:
    """Let warnings be a line each, without the place in the source, and none be of what a command did not ask for."""
    loggers = [logging.getLogger(name) for name in _OF_TORCHAO]
    format_before, warnings.formatwarning = warnings.formatwarning, format_warning
    for logger in loggers:
        logger.addFilter(_errors_only)
    try:
        yield
    finally:
        warnings.formatwarning = format_before
        for logger in loggers:
            logger.removeFilter(_errors_only)


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return the text of a warning, without the place in the source that raised it."""
    return f"warning: {visible(str(message))}\n"


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
