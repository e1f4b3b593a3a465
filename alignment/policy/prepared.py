"""What was found out about a pipeline before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from alignment.errors import CheckpointError


@dataclass(frozen=True)
class Prepared:
    """What was found out; a resumed run must find the same, or it would continue as another run.

    Attributes:
        pipeline: Class of the pipeline.
        scheduler: Class of the scheduler that is conducted.
        rounds: Denoising steps of a call.
        form: How rows are passed to the pipeline.
        between: What happens in rounds that are not trained.
        row_times: Whether rows may be visited at times of their own; None if not asked, or if the pipeline takes no
            state of the caller's.
        kept: Whether every prompt's embedding is kept.
        released: Encoders that were released.
    """

    pipeline: str
    scheduler: str
    rounds: int
    form: str
    between: str
    row_times: bool | None
    kept: bool
    released: tuple[str, ...]

    def __str__(self) -> str:
        """Return it in a line."""
        parts = [f"{self.rounds} steps by {self.scheduler}", self.form, f"steps that are not trained: {self.between}"]
        if self.row_times is not None:
            parts.append("a time a row" if self.row_times else "one time a call")
        parts.append("embeddings are kept" if self.kept else "encoders answer each call")
        if self.released:
            parts.append(f"{', '.join(self.released)} left memory")
        return f"{self.pipeline}: {'; '.join(parts)}"

    def as_json(self) -> Mapping[str, object]:
        """Return it as JSON can hold it."""
        return {**asdict(self), "released": list(self.released)}


def check_same_finds(saved: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Refuse to continue if the pipeline differs from what was found when the checkpoint was written.

    Args:
        saved: What was found out then; empty where a checkpoint does not say.
        here: What was found out now.

    Raises:
        CheckpointError: Naming every difference, with both values.
    """
    if saved and (differences := "; ".join(_differences(saved, here))):
        raise CheckpointError(
            f"the pipeline is not found to be what it was when the checkpoint was written: {differences}. Training "
            "would go on otherwise: restore the pipeline and the versions of environment.json, or start a new run"
        )


def _differences(saved: Mapping[str, object], here: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(saved.keys() | here.keys()):
        if saved.get(name) != here.get(name):
            yield f"{name} was {saved.get(name)!r}, now it is {here.get(name)!r}"
