"""The one place where text reaches a terminal: what would drive the terminal rather than be read is made visible.

Messages quote what others wrote: servers, files, exceptions of users' functions. An escape sequence among that could
clear the screen, retitle the window or hide a line.
"""

from __future__ import annotations

import os
import sys
import unicodedata

KEPT = "\n\t"
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows, so that a line reads as another."""


def visible(text: str) -> str:
    r"""Return text with control characters, halves of characters and turns of direction as escapes: "\x1b[2J"."""
    return "".join(letter if _is_read(letter) else letter.encode("unicode_escape").decode() for letter in text)


def _is_read(letter: str) -> bool:
    return letter in KEPT or (unicodedata.category(letter) not in ("Cc", "Cs") and letter not in DIRECTIONS)


def show(text: str) -> None:
    """Print; the reader may stop early (`| head`)."""
    try:
        print(visible(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits


def complain(text: str) -> None:
    """Print where errors go."""
    print(visible(text), file=sys.stderr)
