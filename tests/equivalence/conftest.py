"""Policies over the saved tiny pipelines, by case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.policy.policy import Policy
from tests.support.policies import CASES, build


@pytest.fixture
def folder_of(flux_folder: Path, sd15_folder: Path) -> dict[str, Path]:
    """Return the folder of each family."""
    return {"flux": flux_folder, "sd15": sd15_folder}


@pytest.fixture
def policy_of(folder_of: dict[str, Path]) -> Callable[..., Policy]:
    """Return a function from a case, and what differs in its description, to a policy."""

    def make(case: str, **spec: object) -> Policy:
        return build(folder_of[case.split()[0]], CASES[case], **spec)

    return make
