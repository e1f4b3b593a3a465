"""How the prompts of a step become pipeline calls."""

from __future__ import annotations

import pytest
import torch

from alignment.data.batches import Groups


@pytest.mark.parametrize("size", [None, 1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6])
def test_calls_have_their_numbers_on_any_number_of_processes(size: int | None, processes: int) -> None:
    step = Groups(tuple(f"prompt {i}" for i in range(12)), torch.arange(12) + 7)
    whole = {prompt: number for number, part in step.calls(size) for prompt in part.prompts}
    each = 12 // processes
    shares = [step[rank * each : (rank + 1) * each] for rank in range(processes)]
    parts = [(number, part) for share in shares for number, part in share.calls(size)]
    assert {prompt: number for number, part in parts for prompt in part.prompts} == whole
    assert tuple(prompt for _, part in parts for prompt in part.prompts) == step.prompts
    assert torch.equal(torch.cat([part.ids for _, part in parts]), step.ids)
    assert all(len(part) <= (size or 12) for _, part in parts)
