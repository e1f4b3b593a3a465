"""Where checkpoints are, how they are read without running what is in them, and how they are recognised.

A source is a path on this machine, or lies on the hub: "owner/name/file" names a file, "owner/name" a folder.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.utils import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from reward_models.base import RewardError
from reward_models.foreign import ForeignCode, first_line

Dtype = Literal["float32", "bfloat16", "float16"]
"""What a network computes in. Scores are float32 whatever it is."""

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_NAMED = 3
"""How many weights a message names."""
_INSIDE = ("state_dict", "model", "module")
"""What training programs call the weights in files that have more."""

_BLOCK = 1 << 24
"""Bytes read at once, to take a file's digest."""


def torch_dtype(name: Dtype) -> torch.dtype:
    """Return torch's dtype of this name."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def find_file(name: str, source: str, revision: str | None = None) -> Path:
    """Return the path of one file, fetched from the hub where it is not on this machine.

    Args:
        name: Who asks, for messages.
        source: A path, or "owner/name/file".
        revision: Of the hub's repository; None for the default branch.

    Raises:
        RewardError: If there is no such file, here or there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    parts = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+)", source)
    if path.is_dir() or parts is None or path.is_absolute():
        raise RewardError(f"{name}: {source} is not a file on this machine, nor 'owner/name/file' on the hub")
    with _hub(name, source):
        return Path(hf_hub_download(parts[1], parts[2], revision=revision))


def find_folder(name: str, source: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the path of a model's folder, fetched from the hub where it is not on this machine.

    Args:
        name: Who asks, for messages.
        source: A path, or "owner/name".
        revision: Of the hub's repository; None for the default branch.
        weights: Whether weights are wanted; without them only configuration and vocabulary are fetched.

    Raises:
        RewardError: If there is no such folder, here or there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise RewardError(f"{name}: {source} is not a folder on this machine, nor 'owner/name' on the hub")
    with _hub(name, source):
        wanted = [*_SMALL_FILES, "*.safetensors"] if weights else [*_SMALL_FILES]
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
        if weights and not list(folder.glob("*.safetensors")):  # older repositories have the other format alone
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=[*_SMALL_FILES, "*.bin"]))
    return folder


@contextmanager
def _hub(name: str, source: str) -> Iterator[None]:
    try:
        yield
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise RewardError(
            f"{name}: {source} is not on this machine, and the hub did not give it: {first_line(error)}. "
            "Give a path, or fetch it where there is a network"
        ) from error


def read_state(name: str, file: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU. Nothing in the file is run.

    Raises:
        RewardError: If the file is damaged, wants to run code, or holds something other than named tensors.
    """
    try:
        with ForeignCode(lambda error: _unreadable(name, file, error)):
            if file.suffix == ".safetensors":
                return load_file(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError as error:  # lengths that are not lengths
        raise _unreadable(name, file, error) from error
    for inside in _INSIDE:
        if isinstance(state, dict) and isinstance(state.get(inside), dict):
            state = state[inside]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise RewardError(f"{name}: {file} holds no weights: expected tensors by name, got a {type(state).__name__}")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _unreadable(name: str, file: Path, error: BaseException) -> RewardError:
    """Return the message about a file; what unpickling raises for bytes that are not a pickle is arbitrary."""
    if not isinstance(error, SafetensorError | RuntimeError | OSError | EOFError):
        return RewardError(f"{name}: {file} {_not_tensors(file, str(error))}")
    what = "it is empty" if not file.stat().st_size else first_line(error).partition(". ")[0]
    return RewardError(f"{name}: {file} cannot be read, it is damaged or no checkpoint: {what}")


def _not_tensors(file: Path, message: str) -> str:
    """Return what is wrong with a file that torch does not unpickle, from its first bytes and torch's message."""
    with file.open("rb") as stream:
        begin = stream.read(16)
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if found or begin[:1] == pickle.PROTO:
        return (
            f"is refused: it holds {found[1] if found else 'something else than tensors'}, and loading that could run "
            "code that somebody put in it. Get the checkpoint from its authors again, or in safetensors"
        )
    return (
        f"cannot be read: {file.stat().st_size:,} bytes that begin with {begin!r} are not a PyTorch checkpoint, or a "
        "damaged one. Get it from its authors again"
    )


def fill(name: str, module: nn.Module, state: Mapping[str, Tensor], *, unused: str = "") -> None:
    """Put a checkpoint's tensors in place of the module's own, which may be on the meta device.

    Args:
        name: Who loads, for messages.
        module: What the checkpoint is for.
        state: Tensors under the module's own names.
        unused: Regular expression of names that the checkpoint may have beyond the module's.

    Raises:
        RewardError: If a weight is missing, unexpected, of another shape or not finite.
    """
    try:
        missing, unexpected = module.load_state_dict(dict(state), strict=False, assign=True)
    except RuntimeError as error:
        wrong = re.findall(r"size mismatch for ([\w.]+)", str(error)) or [first_line(error)]
        raise _other_architecture(name, "of another shape", wrong) from error
    check_complete(name, missing, unexpected, unused=unused)
    check_finite(name, module)


def check_complete(name: str, missing: Iterable[str], unexpected: Iterable[str], *, unused: str = "") -> None:
    """Refuse a checkpoint that lacks weights, or has ones that nobody expects.

    Raises:
        RewardError: Naming some of them.
    """
    if lacking := sorted(missing):
        raise _other_architecture(name, "missing", lacking)
    if strange := sorted(key for key in unexpected if not (unused and re.fullmatch(unused, key))):
        raise _other_architecture(name, "unexpected", strange)


def check_finite(name: str, module: nn.Module) -> None:
    """Refuse weights that are not numbers: every score would be missing.

    Raises:
        RewardError: Naming the first one.
    """
    for key, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise RewardError(f"{name}: the checkpoint is damaged, {key} has values that are not finite")


def _other_architecture(name: str, what: str, keys: list[str]) -> RewardError:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return RewardError(
        f"{name}: the checkpoint is of another architecture or incomplete; {what}: {', '.join(keys[:_NAMED])}{more}"
    )


def load_pretrained(
    name: str,
    from_pretrained: Callable[..., Any],
    source: Path | None,
    *,
    config: Any,
    dtype: Dtype,
    state: Mapping[str, Tensor] | None = None,
    unused: str = "",
) -> Any:
    """Load a transformers model from a folder, or from tensors, and accept nothing made up.

    Args:
        name: Who loads, for messages.
        from_pretrained: Of the model's class.
        source: Folder of the weights; None where `state` has them.
        config: Its configuration.
        dtype: What it computes in.
        state: Tensors under the model's own names.
        unused: Regular expression of names that the checkpoint may have beyond the model's.

    Raises:
        RewardError: If a weight is missing, unexpected, of another shape or not finite, or the file is damaged.
    """

    def unloadable(error: BaseException) -> RewardError:
        return RewardError(f"{name}: {source or 'the checkpoint'} cannot be loaded: {first_line(error)}")

    try:
        with ForeignCode(unloadable), quiet_transformers():  # its table of weights is what we turn into an error
            loaded, report = from_pretrained(
                source, config=config, state_dict=state, dtype=torch_dtype(dtype), output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except MemoryError as error:  # lengths that are not lengths
        raise unloadable(error) from error
    if report["mismatched_keys"]:
        raise _other_architecture(name, "of another shape", sorted(key for key, *_ in report["mismatched_keys"]))
    check_complete(name, report["missing_keys"], report["unexpected_keys"], unused=unused)
    check_finite(name, loaded)
    return loaded.requires_grad_(False).eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers print errors only, inside the block."""
    from transformers.utils import logging

    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
        if bars:
            logging.enable_progress_bar()


@dataclass(frozen=True)
class Provenance:
    """What a loaded scorer was made from.

    Attributes:
        files: Weights, and what else decides its scores.
        preprocessing: What is done to pictures and prompts, in words.
    """

    files: tuple[Path, ...]
    preprocessing: str

    def sha256(self) -> str:
        """Return the SHA-256, in hexadecimal, of the files' contents and of the preprocessing."""
        whole = hashlib.sha256(self.preprocessing.encode())
        for file in self.files:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    whole.update(block)
        return whole.hexdigest()
