"""Memory that runs out: what is whole is saved, one message says what to lower, and the exit code is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from alignment.context import Context
from alignment.data.batches import Transitions
from alignment.objectives.base import Loss
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from reward_models.foreign import out_of_memory
from tests.support import runs
from tests.support.runs import left_by, prepared_for_the_toy, train

ENDLESS = 1 << 60
OUT = 6
UPDATES = 2  # of a step
QUIET = ("evaluation.prompts=null", "source.prompts_per_call=2")


def on_a_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")


def on_the_cpu() -> None:
    torch.empty(ENDLESS, dtype=torch.uint8)


def in_numpy() -> None:
    np.empty(ENDLESS, dtype=np.uint8)


@dataclass(frozen=True)
class Hungry(ClippedSurrogate):
    """Takes all the memory there is in one of its calls."""

    at: ClassVar[int] = 0
    calls: ClassVar[int] = 0
    how: ClassVar[Callable[[], None]] = staticmethod(on_a_device)

    def __call__(self, ctx: Context, batch: Transitions, learn: Callable[[Loss], None]) -> None:
        Hungry.calls += 1
        if Hungry.calls == Hungry.at:
            Hungry.how()
        super().__call__(ctx, batch, learn)


def memory_for(calls: int, how: Callable[[], None] = on_a_device) -> str:
    Hungry.at, Hungry.calls, Hungry.how = calls + 1, 0, staticmethod(how)
    return f"objective.type={__name__}:Hungry"


@pytest.fixture(scope="module")
def folder(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_for_the_toy(tmp_path_factory.mktemp("memory"), toy_folder)


def told(capfd: pytest.CaptureFixture[str]) -> str:
    said = capfd.readouterr().err
    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if line.startswith("visalign: ")]
    return line


@pytest.mark.parametrize("how", [on_a_device, on_the_cpu, in_numpy])
def test_every_refused_allocation_is_known(how: Callable[[], None]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        how()
    assert out_of_memory(raised.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("how", [on_a_device, on_the_cpu])
def test_between_two_updates_of_different_steps_the_last_step_is_saved(
    folder: Path, capfd: pytest.CaptureFixture[str], how: Callable[[], None]
) -> None:
    name, few = f"name={how.__name__}", ("output.save_every=0", *QUIET)
    assert train(folder, "grpo", name, *few, memory_for(2 * UPDATES, how)) == OUT
    line = told(capfd)
    assert "memory ran out in learning, step 2: " in line
    assert "a smaller batch.microbatch (now 4) or policy.gradient_checkpointing: true or" in line
    assert line.endswith("checkpoint-2 is saved; continue with --resume latest")
    run = folder / "runs" / how.__name__
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"]
    assert train(folder, "grpo", name, *few, memory_for(10**6), "batch.microbatch=2", "--resume", "latest") == 0
    assert len(left_by(run)["metrics"]) == runs.STEPS


def test_a_step_that_is_learned_by_half_is_not_saved(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half = memory_for(2 * UPDATES + 1)
    assert train(folder, "grpo", "name=half", "output.save_every=1", *QUIET, half) == OUT
    line = told(capfd)
    assert "A step that is learned by half is not saved; " in line
    assert line.endswith("checkpoint-2 is saved; continue with --resume latest")
    assert train(folder, "grpo", "name=none", "output.save_every=0", *QUIET, memory_for(2 * UPDATES + 1)) == OUT
    assert "there is no checkpoint before it" in told(capfd)
    assert not list((folder / "runs" / "none").glob("checkpoint-*"))
