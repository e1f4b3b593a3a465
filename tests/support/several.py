"""Several processes of one program: to its end, or to be stopped, killed and waited for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from tests.support.forked import start
from tests.support.ports import free_port

HANG = 900.0  # seconds; only a hang of one run takes as long
LONGEST = 7200.0  # what is run to its end may be many of them


def environments(size: int, **more: str) -> list[Mapping[str, str]]:
    """Return what a launcher of so many processes puts into the environment of each."""
    where = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **more}
    return [{**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def together(size: int, module: str, *words: str) -> None:
    """Run `python -m MODULE WORDS` in so many processes that meet; each has to end well.

    As with a launcher, none outlives one that does not.
    """
    with TemporaryDirectory() as folder:
        logs = [Path(folder) / f"log{rank}" for rank in range(size)]
        running = [start(module, words, *each) for each in zip(environments(size), logs, strict=True)]
        try:
            while left := [process.sentinel for process in running if process.exitcode is None]:
                assert wait(left, LONGEST), "hung"
                assert all(process.exitcode in (None, 0) for process in running), "".join(
                    log.read_text() for log in logs
                )
        finally:
            for process in running:
                process.kill()


class Processes:
    """The processes of one run, started as a launcher does that leaves them alone afterwards.

    Args:
        folder: What `prepared` wrote.
        reward: Judge of the samples, a function of a module.
        more: Words of the command line of all.
        apart: Words of the last one's alone.
        size: How many there are.
    """

    def __init__(
        self, folder: Path, reward: Callable[..., Tensor], *more: str, apart: Sequence[str] = (), size: int = 2
    ) -> None:
        self.folder, self.mark, self.size = folder, folder / "mark", size
        judge = f"source.reward={{type: function, call: '{reward.__module__}:{reward.__name__}'}}"
        fixed = (str(folder / "grpo.yaml"), "evaluation.prompts=null", "source.prompts_per_call=1", judge)
        self.running = [
            start(
                "alignment.train",
                [*fixed, *more, *(apart if rank == size - 1 else ())],
                environment,
                folder / f"log{rank}",
            )
            for rank, environment in enumerate(environments(size, MARK=str(self.mark)))
        ]

    def ended(self) -> list[int]:
        """Return the exit codes."""
        try:
            return [self.code(rank) for rank in range(self.size)]
        finally:
            for process in self.running:
                process.kill()

    def code(self, rank: int) -> int:
        """Wait for one process and return its exit code."""
        self.running[rank].join(HANG)
        code = self.running[rank].exitcode
        assert code is not None, "hung"
        return code

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one process."""
        pid = self.running[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def until(self, there: Callable[[], bool]) -> None:
        """Wait for something these processes do."""
        for _ in range(int(HANG * 10)):
            if there():
                return
            time.sleep(0.1)
        raise AssertionError("hung")

    def steps(self) -> int:
        """Return how many steps were told."""
        metrics = self.folder / "runs" / "run" / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def told(self) -> list[str]:
        """Return what the processes told the user."""
        logs = "".join((self.folder / f"log{rank}").read_text() for rank in range(self.size))
        assert "Traceback" not in logs, logs
        return [line for line in logs.splitlines() if line.startswith("visalign: ")]
