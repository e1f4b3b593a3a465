"""What extractors with weights share: finding them, and saying where they are to be had."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from alignment.errors import ConfigError
from reward_models.base import RewardError
from reward_models.foreign import ForeignCode, first_line
from reward_models.loading.weights import find_file, find_folder


class WithWeights:
    """An extractor whose weights somebody publishes; its `weights` say where they lie.

    Attributes:
        licence: Of the weights.
        place: Where they are to be had.
    """

    licence: ClassVar[str]
    place: ClassVar[str]

    @property
    def asks(self) -> str:
        """Who asks for them, for messages."""
        return f"features: {type(self).__module__.rpartition('.')[2]}"

    @contextmanager
    def published(self) -> Iterator[None]:
        """Say with every error where weights that can be used are to be had.

        Raises:
            ConfigError: In place of what is raised about weights.
        """
        try:
            yield
        except (RewardError, ConfigError) as error:
            raise ConfigError(f"{error}. They are to be had from {self.place} (licence: {self.licence})") from error

    def file(self, source: str) -> Path:
        """Return the file of the weights."""
        with self.published():
            return find_file(self.asks, source)

    def folder(self, source: str, revision: str | None) -> Path:
        """Return the folder of the weights."""
        with self.published():
            return find_folder(self.asks, source, revision)

    def scripted(self, path: Path, device: torch.device) -> Any:
        """Return the TorchScript program in a file.

        Raises:
            ConfigError: If it is none, or damaged.
        """

        def damaged(error: BaseException) -> RewardError:
            reason = first_line(error)
            return RewardError(f"{self.asks}: {path} is no TorchScript program, or a damaged one: {reason}")

        with self.published(), ForeignCode(damaged), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # others are told to write other files; these are there
            return torch.jit.load(path, map_location=device).eval()


def is_program(path: Path) -> bool:
    """Return whether a file is a TorchScript program and not a state dict."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
