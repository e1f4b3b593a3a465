"""When memory runs out: what to lower, in the words of the config."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from alignment.config.run import Run
from alignment.errors import OutOfMemory
from reward_models.errors import RewardError, RewardOutOfMemory
from reward_models.foreign import out_of_memory, what_ran_out

Doing = Literal["sampling", "learning", "evaluation"]


@contextmanager
def enough_memory(run: Run, doing: Doing, step: int) -> Iterator[None]:
    """Report what to lower if memory runs out inside the block.

    Args:
        run: The run, for its values now.
        doing: What the block does.
        step: Of which step.

    Raises:
        OutOfMemory: In place of what torch raised. What the failed pass held is free by then: saving takes room too.
    """
    try:
        yield
    except RewardOutOfMemory as error:
        raise OutOfMemory(
            f"in {doing}, step {step}: {error}. Give the reward less at once, or another device"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RewardError) or not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        reason = what_ran_out(error)
    else:
        return
    resuming, afresh = _remedies(run, doing)
    raise OutOfMemory(
        f"memory ran out in {doing}, step {step}: {reason}. Resumed with "
        f"{' or '.join(resuming) or 'more memory'} the run takes less; a new one also with {' or '.join(afresh)}"
    )


def _remedies(run: Run, doing: Doing) -> tuple[list[str], list[str]]:
    """Return what can be changed when the run is resumed, and what only in a new run."""
    policy, learning = run.policy, doing == "learning"
    prompts, calls = run.source.prompts, run.source.shape(None).calls
    at_once = prompts // calls if calls else "all of them"
    rows, pictures = run.batch.rows, run.evaluation.batch_size
    resuming = [
        (learning and rows > 1, f"a smaller batch.microbatch (now {rows})"),
        (learning and policy.gradient_checkpointing is not True, "policy.gradient_checkpointing: true"),
        (doing == "evaluation" and pictures > 1, f"a smaller evaluation.batch_size (now {pictures})"),
        (policy.trajectories == "device", "policy.trajectories: cpu"),
        (not policy.offload, "policy.offload: true"),
        (learning and policy.lora is None and not run.optimizer.offload, "optimizer.offload: true"),
    ]
    afresh = [
        (doing == "sampling" and calls not in (0, prompts), f"a smaller source.prompts_per_call (now {at_once})"),
        (not learning and policy.decode == "whole", "policy.decode: sliced"),
        (learning and policy.lora is None, "policy.lora: {}"),
        (policy.autocast is None, "policy.autocast: bfloat16"),
        (policy.dtype == "float32", "policy.dtype: bfloat16"),
        (True, "a smaller height, width or num_frames in policy.call"),
    ]
    return [words for helps, words in resuming if helps], [words for helps, words in afresh if helps]
