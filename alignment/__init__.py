"""Align diffusion and flow generators with what people want.

`from alignment import Run, train, load_run` is the way from Python; docs/python.md shows it. Every class that a `type:`
of a config may name is here too, by its own name. Nothing of it is imported before it is asked for.
"""

import importlib

__version__ = "0.1.0"
_FUNCTIONS = ("load_run", "train")


def __getattr__(name: str) -> object:
    """Return what `alignment.api` has under this name; classes begin with a capital letter, modules do not."""
    if name not in _FUNCTIONS and not name[:1].isupper():
        raise AttributeError(f"module 'alignment' has no attribute {name!r}")
    return importlib.import_module("alignment.api").named(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("alignment.api").names()})
