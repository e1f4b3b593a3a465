"""Pipeline calls of processes that call networks together: all of them make equally many."""

from __future__ import annotations

import pytest
import torch

from alignment.data.batches import Groups
from alignment.errors import ConfigError
from alignment.sources.base import StepShape, calls_of
from alignment.training.runtime.mesh import check_calls

CASES = [
    (prompts, per_call, size)
    for prompts in (4, 6, 12, 24)
    for per_call in (1, 2, 3, 4, 6, 12)
    for size in (2, 3, 4)
    if prompts % per_call == 0 and prompts % size == 0
]


@pytest.mark.parametrize(("prompts", "per_call", "size"), CASES)
def test_uneven_calls_are_refused_and_only_they(prompts: int, per_call: int, size: int) -> None:
    groups, each = Groups(("a",) * prompts, torch.arange(prompts)), prompts // size
    made = {len(groups[rank * each : (rank + 1) * each].calls(per_call)) for rank in range(size)}
    shape = StepShape(prompts, 2, 2 * prompts, calls_of(prompts, per_call))
    if len(made) == 1:
        check_calls(shape, size)
        return
    said = f"got {per_call}, with which some .* make {min(made)} pipeline calls in a step and others {max(made)}"
    with pytest.raises(ConfigError, match=rf"source\.prompts_per_call: {said}.* divides the {each} prompts"):
        check_calls(shape, size)


def test_both_kinds_are_among_the_cases() -> None:
    assert (6, 3, 3) in CASES
    with pytest.raises(ConfigError):
        check_calls(StepShape(6, 2, 12, 2), 3)
    check_calls(StepShape(6, 2, 12, None), 3)
