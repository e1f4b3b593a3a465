"""Environments of other people's packages, which borrow what is large from ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def cloned(address: str, folder: Path, variable: str, *, release: str | None = None) -> Path:
    """Return the folder of a public repository.

    Args:
        address: Where it is cloned from, where it is not there.
        folder: Where to.
        variable: Of the environment, which may say where it is.
        release: Its tag; None for the newest.
    """
    place = Path(os.environ.get(variable, folder))
    if not place.is_dir():
        named = () if release is None else ("--branch", release)
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", *named, address, place], check=True)
    return place


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """Return the interpreter of an environment, made where there is none; PyTorch and the like are ours."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        inside = next(folder.glob("lib/python*/site-packages"))
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (inside / "ours.pth").write_text("\n".join(ours), encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python
