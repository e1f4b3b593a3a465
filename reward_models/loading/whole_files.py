"""Files that are read whole: as many bytes as there is memory for, and none that have no end."""

from __future__ import annotations

import errno
from pathlib import Path

BYTES_AT_MOST = 2**30
"""Of a text file: some million long prompts."""


def check_end(path: Path) -> None:
    """Refuse to read what may have no end.

    Raises:
        OSError: If it is a device or a pipe.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a device or a pipe, which may have no end", str(path))


def read_whole(file: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: If it cannot be read, is a device or a pipe, or has more than `BYTES_AT_MOST`.
    """
    path = Path(file)
    check_end(path)
    with path.open("rb") as opened:
        content = opened.read(BYTES_AT_MOST + 1)
    if len(content) > BYTES_AT_MOST:
        raise OSError(errno.EFBIG, f"it has more than {BYTES_AT_MOST:,} bytes", str(file))
    return content


def read_lines(file: str | Path) -> list[str]:
    """Return the lines of a text file, but for blank ones at its end.

    Only a line feed ends one: `str.splitlines` would split texts, too, at what Unicode calls a line's end.

    Raises:
        OSError: As `read_whole` does.
        UnicodeDecodeError: If it is not UTF-8.
    """
    content = read_whole(file).decode("utf-8-sig").rstrip("\n")
    return content.split("\n") if content else []
