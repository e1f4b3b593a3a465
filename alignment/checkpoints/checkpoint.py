"""Checkpoints that are whole or not there.

A save is written into `checkpoint-N.tmp-RANDOM`, synced to the disk, sealed with a manifest and only then renamed to
`checkpoint-N`: a process that dies at any moment leaves the earlier checkpoint, or the new one, or both. Older ones are
deleted after that, never before. `latest` is a text file with the name of the newest, for people and scripts.

All from the syncing on may go on in the background, in a thread that reads, hashes and renames files and computes
nothing else: a second one that computes would take the first one's cores. Until then what is written lies in memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from alignment.checkpoints.manifest import NAME, Manifest, inspect, read_manifest, verify
from alignment.data.tensor_files import heed_umask
from alignment.errors import CheckpointError, ConfigError, EnvironmentProblem

LATEST, AUTO = "latest", "auto"
LOCK = ".lock"
# `.replaced-` is the former checkpoint of the same step: whole, and the only one for the moment between two renames.
FINISHED = re.compile(r"checkpoint-\d+(\.replaced-[0-9a-f]+)?")
UNFINISHED = re.compile(r".+\.tmp-[0-9a-f]+")
SPACE = 1.2  # room asked for before a save, in sizes of the one before
REMEDY = {
    errno.ENOTDIR: "a part of this path is a file; choose another `name` or `output.folder`",
    errno.EEXIST: "there is a file of this name; choose another `name` or `output.folder`",
    errno.EACCES: "choose an `output.folder` you may write to",
    errno.EPERM: "choose an `output.folder` you may write to",
    errno.EROFS: "the file system is read-only; choose another `output.folder`",
    errno.ENAMETOOLONG: "choose a shorter `name`",
    errno.ENOSPC: "free some space, or choose another `output.folder`",
}


@dataclass(frozen=True)
class _Draft:
    """A save that is not sealed yet.

    Attributes:
        step: Steps done.
        folder: Where it was written.
        before: The checkpoints there were, newest first.
    """

    step: int
    folder: Path
    before: Mapping[Path, Manifest | None]


class Checkpoints:
    """The checkpoints of one run's folder.

    Args:
        folder: The run's folder.
        keep: Checkpoints left after a save, at least 1.
        config: The resolved config, whose hash every manifest carries.
        world_size: Processes of the run; only one of them saves.
    """

    def __init__(
        self, folder: Path, keep: int, config: Mapping[str, object] | None = None, world_size: int = 1
    ) -> None:
        if keep < 1:
            raise ConfigError(f"output.keep is {keep}; at least 1 checkpoint must be kept")
        self.folder = folder
        self.keep = keep
        self.config = dict(config or {})
        self.world_size = world_size
        self.best: int | None = None
        """Step of a checkpoint that stays, however many come after it."""
        self._lock: int | None = None
        self._sealing: Future[Path] | None = None

    def prepare(self) -> None:
        """Make the folder and keep every other process out of it, before anything is computed.

        Raises:
            EnvironmentProblem: If nothing can be written here, or another process is doing so.
        """
        path = self.folder / LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            remedy = REMEDY.get(error.errno or 0, "choose another `output.folder`")
            raise EnvironmentProblem(f"cannot write into {self.folder}: {error.strerror}; {remedy}") from None
        # The kernel gives the lock back when its holder dies, however it dies: a stale one cannot be met.
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = path.read_text(encoding="utf-8").strip() or "another process"
            self.close()
            raise EnvironmentProblem(
                f"{self.folder} is in use by {holder}; wait for it, stop it, or give this run another `name`"
            ) from None
        except OSError as error:
            warnings.warn(f"{self.folder}: no protection from a second process here ({error.strerror})", stacklevel=2)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def close(self) -> None:
        """Let other processes in, once what goes on in the background is done."""
        if self._sealing is not None and (error := self._sealing.exception()) is not None:
            warnings.warn(str(error), stacklevel=2)  # another error ends the run
        self._sealing = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Commit the checkpoint of `step` and return its folder.

        Args:
            step: Steps done.
            write: Fills the folder it is given; every `.safetensors` file there must hold finite tensors.

        Raises:
            EnvironmentProblem: If the disk is full or fails; the checkpoint before is untouched.
            CheckpointError: If what was written is not worth keeping: no weights, empty, not finite.
        """
        self.settle()
        return self._seal(self._drafted(step, write))

    def begin(self, step: int, write: Callable[[Path], None]) -> None:
        """Write the checkpoint of `step`, and commit it in the background; `settle` and `heed` say how that ended.

        Args:
            step: Steps done.
            write: As in `save`. What it saves may change once it has returned.

        Raises:
            EnvironmentProblem: As `save` does, and if the save before has failed.
            CheckpointError: If the save before has failed.
        """
        self.settle()
        draft = self._drafted(step, write)
        thread = ThreadPoolExecutor(1, "saving")
        self._sealing = thread.submit(self._seal, draft)
        thread.shutdown(wait=False)  # it ends with its work, which the interpreter waits for

    def settle(self) -> None:
        """Wait for a save in the background.

        Raises:
            EnvironmentProblem: As `save` does.
            CheckpointError: As `save` does.
        """
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def heed(self) -> None:
        """Raise what a save in the background has failed with, if it has; see `settle`."""
        if self._sealing is not None and self._sealing.done():
            self.settle()

    def _drafted(self, step: int, write: Callable[[Path], None]) -> _Draft:
        before = self._newest_first()
        self._check_space(before)
        draft = _Draft(step, _temporary(self.folder / f"checkpoint-{step}"), before)
        for path in self._entries(UNFINISHED):
            _discard(path)
        with self._explaining(draft):
            draft.folder.mkdir(parents=True)
            write(draft.folder)
        return draft

    def _seal(self, draft: _Draft) -> Path:
        past, target = next(iter(draft.before.values()), None), self.folder / f"checkpoint-{draft.step}"
        with self._explaining(draft):
            heed_umask(draft.folder)
            _sync_tree(draft.folder)
            manifest = inspect(
                draft.folder,
                step=draft.step,
                sequence=past.sequence + 1 if past else 1,
                world_size=self.world_size,
                config=self.config,
            )
            _write_durably(draft.folder / NAME, manifest.dumps())
            _sync(draft.folder)
            self._commit(draft.folder, target)
        self._prune(target)
        if past and past.step != draft.step and past.weights == manifest.weights:
            warnings.warn(f"{target} has the very weights of step {past.step}: nothing was learned", stacklevel=2)
        return target

    @contextmanager
    def _explaining(self, draft: _Draft) -> Iterator[None]:
        """Say of what a disk does inside the block what it means, and leave nothing of a save that was not to be."""
        done = False
        try:
            yield
            done = True
        except (OSError, SafetensorError) as error:
            previous, past = next(iter(draft.before.items()), (None, None))
            kept = f"{previous} is intact" if past else "there is none before it"
            again = "continue with --resume latest" if past else "start afresh with output.overwrite=true"
            raise EnvironmentProblem(
                f"the checkpoint of step {draft.step} could not be saved: {error}; {kept}: "
                f"free some space or mend the disk, and {again}"
            ) from error
        finally:
            if not done:
                shutil.rmtree(draft.folder, ignore_errors=True)

    def find(self, which: str | Path = LATEST) -> Path:
        """Return a checkpoint to resume from, verified.

        Args:
            which: A checkpoint's path, its name in this folder, or "latest": the newest that is intact, with a warning
                about any that is not.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        if not str(which):
            raise CheckpointError(f"--resume is empty; give {LATEST}, or the path of a checkpoint")
        return self._latest() if str(which) == LATEST else self._named(Path(which))

    @property
    def _best(self) -> str:
        return f"checkpoint-{self.best}"

    def hold_any(self) -> bool:
        """Return whether there is a finished checkpoint, intact or not."""
        return bool(self._entries(FINISHED))

    def _latest(self) -> Path:
        intact, damage = self._newest_intact()
        if intact is None:
            found = "no checkpoint" if not damage else "no intact checkpoint: " + "; ".join(damage)
            raise CheckpointError(
                f"{self.folder} has {found}; start afresh, without `--resume`: "
                "output.overwrite=true moves aside what the folder holds"
            )
        if damage:
            warnings.warn(f"{'; '.join(damage)}. Falling back to {intact}", stacklevel=3)
        return intact

    def _named(self, which: Path) -> Path:
        path = which if which.is_dir() else self.folder / which
        if not path.is_dir():
            found = ", ".join(sorted(entry.name for entry in self._entries(FINISHED))) or "none"
            raise CheckpointError(f"there is no checkpoint {which}; in {self.folder} there is: {found}")
        try:
            verify(path)
        except CheckpointError as error:
            intact, _ = Checkpoints(path.parent, keep=1)._newest_intact()
            remedy = f"{intact} is intact" if intact else "no other one beside it is intact"
            raise CheckpointError(f"{error}; {remedy}") from None
        return path

    def _newest_intact(self) -> tuple[Path | None, list[str]]:
        """Return the newest checkpoint that verifies, and what is wrong with those that may be newer."""
        damage: list[str] = []
        # One that cannot be read may be the newest, so it is looked at first.
        for path, _ in sorted(self._newest_first().items(), key=lambda item: item[1] is not None):
            try:
                verify(path)
            except CheckpointError as error:
                damage.append(str(error))
            else:
                return path, damage
        return None, damage

    def _entries(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if pattern.fullmatch(path.name)]

    def _newest_first(self) -> dict[Path, Manifest | None]:
        """Return the finished checkpoints, by the order they were saved in; last, those that cannot be read."""
        found: dict[Path, Manifest | None] = {}
        for path in self._entries(FINISHED):
            try:
                found[path] = read_manifest(path)
            except CheckpointError:
                found[path] = None
        return dict(sorted(found.items(), key=lambda item: item[1].sequence if item[1] else 0, reverse=True))

    def _check_space(self, before: Mapping[Path, Manifest | None]) -> None:
        needed = SPACE * max((manifest.size for manifest in before.values() if manifest), default=0)
        if needed and (free := shutil.disk_usage(self.folder).free) < needed:
            warnings.warn(
                f"{self.folder}: {free / 2**20:.0f} MiB free, the next checkpoint needs about {needed / 2**20:.0f}; "
                f"free some space or lower `output.keep`",
                stacklevel=3,
            )

    def _commit(self, temporary: Path, target: Path) -> None:
        if target.exists():
            os.rename(target, target.with_name(f"{target.name}.replaced-{secrets.token_hex(4)}"))
        os.rename(temporary, target)
        _sync(self.folder)
        pointer = _temporary(self.folder / LATEST)
        _write_durably(pointer, f"{target.name}\n")
        os.replace(pointer, self.folder / LATEST)
        _sync(self.folder)

    def _prune(self, saved: Path) -> None:
        """Delete all but the newest; `saved` has just been verified and is the newest."""
        others = [path for path in self._newest_first() if path != saved]
        replaced = [path for path in others if not path.name.removeprefix("checkpoint-").isdecimal()]
        surplus = [path for path in others if path not in replaced and path.name != self._best][self.keep - 1 :]
        for path in replaced + surplus:
            _discard(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")


def _discard(path: Path) -> None:
    """Delete what is not needed any more; where the disk refuses, say so and leave it: nothing is lost by that."""
    # Out of sight first: a deletion that is cut short must not look like a damaged checkpoint.
    aside = path if UNFINISHED.fullmatch(path.name) else _temporary(path)
    try:
        if aside != path:
            os.rename(path, aside)
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink()
    except OSError as error:
        warnings.warn(
            f"{path} is not needed any more and could not be deleted: {error}; delete it by hand", stacklevel=4
        )


def _write_durably(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        rest = memoryview(text.encode())
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)
