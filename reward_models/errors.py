"""What goes wrong with a reward, and whose code it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from reward_models.foreign import ForeignCode, from_the_keyboard, globals_kept, out_of_memory


class RewardError(RuntimeError):
    """A scorer failed, or answered something that is not a score."""


class RewardOutOfMemory(RewardError):
    """There was no more memory where a scorer works."""


def broken(what: object, error: BaseException) -> RewardError:
    """Return what is raised in place of an error that a scorer raised, or of its ending the program."""
    kind = RewardOutOfMemory if out_of_memory(error) else RewardError
    return kind(f"{what} raised {type(error).__name__}: {' '.join(str(error).split())}")


class ScorersCode(ForeignCode):
    """Names the model whose code an error came from within the `with` block, a stranger's or its own.

    What a stranger's code raises becomes a `RewardError`, and so does memory that ran out; of what our own code raises
    only the kinds that are `expected` do.
    """

    def __init__(self, model: object, expected: tuple[type[Exception], ...] = ()) -> None:
        """Prepare for errors of `model`.

        Args:
            model: Named in the error.
            expected: Kinds of errors that our own code may meet there: a device, a file, numbers.
        """
        super().__init__(lambda error: broken(model, error))
        self._model, self._expected = model, expected

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, RewardError) or error is None:
            return
        if isinstance(error, self._expected) or out_of_memory(error):
            raise broken(self._model, error) from error


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
