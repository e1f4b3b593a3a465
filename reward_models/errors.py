"""What goes wrong with a reward, and whose code it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from reward_models.foreign import from_the_keyboard, globals_kept, out_of_memory


class RewardError(RuntimeError):
    """A scorer failed, or answered something that is not a score."""


class RewardOutOfMemory(RewardError):
    """There was no more memory where a scorer works."""


def broken(what: object, error: BaseException) -> RewardError:
    """Return what is raised in place of an error that a scorer raised, or of its ending the program."""
    kind = RewardOutOfMemory if out_of_memory(error) else RewardError
    return kind(f"{what} raised {type(error).__name__}: {' '.join(str(error).split())}")


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Run a user's code: it may raise anything or try to end the program, and the error has to name that code.

    What it sets for the whole process is put back.

    Raises:
        RewardError: If it did, naming `what`; the cause stays attached.
    """
    try:
        with globals_kept(what):
            yield
    except BaseException as error:
        if from_the_keyboard(error):
            raise
        raise broken(what, error) from error
