"""Packages that only one reward needs, imported when it is loaded."""

from __future__ import annotations

import importlib
from typing import Any

from reward_models.base import RewardError


def extra(name: str, package: str, extra: str) -> Any:
    """Return an optional package.

    Args:
        name: Who needs it, for messages.
        package: What is imported.
        extra: The extra of visalign that installs it.

    Raises:
        RewardError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RewardError(
            f"{name} needs the package {package}, which cannot be imported ({error}); "
            f"install it: pip install 'visalign[{extra}]'"
        ) from error
