"""The errors a user may meet. Each carries one message: what was got, what was expected, what to do."""

from __future__ import annotations


class VisalignError(Exception):
    """Base of every error that is the user's to read: the command line prints it alone, without a traceback.

    Attributes:
        exit_code: 2 config or input, 3 environment, 4 stopped but resumable, 5 numerics, 6 out of memory, 7 a process
            was lost, 8 stopped by its watch; docs/exit_codes.md says what to do.
    """

    exit_code: int = 2


class ConfigError(VisalignError, ValueError):
    """A configuration that cannot run; nothing was started."""


class FieldError(ConfigError):
    """A field of a dataclass that does not go with the others; a config then points at where it was written.

    Attributes:
        field: Its name.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class MissingError(ConfigError):
    """Fields that have to be given and are not: a line each."""


class DataError(VisalignError, ValueError):
    """A prompt or media file that cannot be used."""


class PipelineError(VisalignError, RuntimeError):
    """A pipeline that cannot be loaded, or does not follow the scheduler contract."""


class PipelineRefused(PipelineError):
    """Something that the pipeline's own code raised: it does not work in this way, with these arguments or rows."""


class ForwardProcessError(PipelineError):
    """The pipeline cannot be handed noised samples of one's own, which some objectives learn from."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"policy.pipeline: {reason}; objectives that noise clean samples themselves cannot train this pipeline. "
            "clipped_surrogate can: it learns from the pipeline's own steps"
        )


class CheckpointError(VisalignError, RuntimeError):
    """A checkpoint that is missing, damaged, or does not fit this run."""


class EnvironmentProblem(VisalignError, RuntimeError):
    """Something outside the run is missing: a package, a device, space, a permission."""

    exit_code = 3


class Stopped(VisalignError):
    """The run was asked to stop, saved itself, and can be resumed."""

    exit_code = 4


class Alarmed(VisalignError):
    """The watch of the run has seen a fall, and the run was asked to stop at that."""

    exit_code = 8


class NumericsError(VisalignError, ArithmeticError):
    """A loss, gradient or reward that is not finite."""

    exit_code = 5


class OutOfMemory(VisalignError):
    """There was no more memory, on the device or in the machine."""

    exit_code = 6


class ProcessLost(VisalignError):
    """One of a run's processes is stuck or gone."""

    exit_code = 7


class OutOfStep(VisalignError):
    """Processes of a run that have to do the same do different things."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"parallel.shard: {what}, and networks that are spread over processes are called by all of them together. "
            "Something that this run calls (a reward, a pipeline) takes another way on each; set parallel.shard=1"
        )


class EndedElsewhere(VisalignError):
    """Another process of the run has failed and tells the user; this one only leaves."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code
