"""What a checkpoint records about itself: its files with size and hash, and whether they are unchanged.

Weights formats carry no checksum: a flipped bit loads as another number. So every file is hashed (xxh3, 64 bits), and a
folder without a manifest that matches it is not a checkpoint. Nothing here needs torch: looking for a checkpoint is
quick.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from alignment.errors import CheckpointError

NAME = "manifest.json"
SCHEMA = 1
LIBRARIES = ("visalign", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")
STATE = "state"  # the subfolder for resuming; every other safetensors file is what a user loads
CHUNK = 1 << 24
# A float is infinite or NaN exactly when all bits of its exponent are set.
EXPONENT = {
    "F64": ("<u8", 0x7FF << 52),
    "F32": ("<u4", 0xFF << 23),
    "F16": ("<u2", 0x1F << 10),
    "BF16": ("<u2", 0xFF << 7),
}


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written.

    Attributes:
        size: Bytes.
        xxh3: Hash of the content, 16 hexadecimal digits.
    """

    size: int
    xxh3: str


@dataclass(frozen=True)
class Manifest:
    """What is in a checkpoint, and what wrote it.

    Attributes:
        step: Steps of the run that were done.
        sequence: Position among the saves of its folder: decides which of two is newer, also after a run went back.
        world_size: Processes of the run.
        config_hash: SHA-256 of the resolved config.
        versions: Libraries, by name.
        weights: xxh3 of the numbers a user loads, without names and headers; equal weights have equal hashes.
        files: Every file, by its path relative to the checkpoint, with forward slashes.
        schema: Version of this record.
    """

    step: int
    sequence: int
    world_size: int
    config_hash: str
    versions: Mapping[str, str]
    weights: str
    files: Mapping[str, FileRecord]
    schema: int = SCHEMA

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def dumps(self) -> str:
        """Return the record as JSON, with a hash of itself."""
        return _seal(asdict(self))


def inspect(folder: Path, *, step: int, sequence: int, world_size: int, config: Mapping[str, object]) -> Manifest:
    """Re-open every file of `folder`, check the weights, and return the record of what is there.

    Raises:
        CheckpointError: If there are no weights, or weights that are empty or not finite.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise CheckpointError(f"{folder}: nothing to save, no .safetensors file was written")
    numbers = xxhash.xxh3_64()
    for name in weights:
        body = _check_weights(names[name])
        if not name.startswith(f"{STATE}/"):
            numbers.update(body.data)
    return Manifest(
        step=step,
        sequence=sequence,
        world_size=world_size,
        config_hash=_hash_config(config),
        versions=_versions(),
        weights=numbers.hexdigest(),
        files={name: FileRecord(path.stat().st_size, _hash_file(path)) for name, path in names.items()},
    )


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of `folder`, without looking at its other files.

    Raises:
        CheckpointError: If there is none, or one that cannot be trusted.
    """
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder} is not a finished checkpoint: it has no {NAME}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: it cannot be read as JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
        raise CheckpointError(f"{path} is damaged: it is not the record of a checkpoint")
    if record["schema"] > SCHEMA:
        raise CheckpointError(
            f"{path} has schema {record['schema']}, this visalign reads up to {SCHEMA}: it was written by a newer "
            f"version; upgrade visalign"
        )
    record.pop("self", None)
    if text != _seal(record):
        raise CheckpointError(f"{path} is damaged: its content does not match its own hash")
    return _manifest(path, record)


def _manifest(path: Path, record: Mapping[str, Any]) -> Manifest:
    """Return a sealed record as a manifest; a later version may have written keys that are not known here."""
    try:
        known: dict[str, Any] = {field.name: record[field.name] for field in fields(Manifest)}
        files = {name: FileRecord(entry["size"], entry["xxh3"]) for name, entry in known["files"].items()}
    except KeyError as error:
        raise CheckpointError(
            f"{path} lacks the key {error}: it was written by another version of visalign; use that version"
        ) from None
    except (AttributeError, TypeError):
        raise CheckpointError(f"{path}: files is not a list of files with sizes and hashes") from None
    numbers = (known["step"], known["sequence"], known["world_size"])
    if not all(isinstance(number, int) for number in numbers):
        raise CheckpointError(f"{path}: step, sequence and world_size are not whole numbers: {numbers}")
    known["files"] = files
    return Manifest(**known)


def verify(folder: Path, previous: Path | None = None) -> Manifest:
    """Check every file of a checkpoint against its manifest, and return the manifest.

    Args:
        folder: The checkpoint.
        previous: An earlier one, whose weights must differ.

    Raises:
        CheckpointError: Naming the first file that is missing or is not what it was.
    """
    manifest = read_manifest(folder)
    name, _, rest = folder.name.partition("-")
    if name == "checkpoint" and rest.isdecimal() and int(rest) != manifest.step:
        raise CheckpointError(f"{folder} holds step {manifest.step}: the folder was renamed, or files were swapped")
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{path} is damaged: {path.stat().st_size} bytes, {record.size} were written")
        if _hash_file(path) != record.xxh3:
            raise CheckpointError(f"{path} is damaged: its content is not what was written")
        if name.endswith(".safetensors"):
            _check_weights(path)
    if previous is not None and read_manifest(previous).weights == manifest.weights:
        raise CheckpointError(f"{folder} has the very weights of {previous}: nothing was learned in between")
    return manifest


def _check_weights(path: Path) -> np.ndarray:
    """Return the bytes of all tensors; refuse a file that is malformed, empty, or holds a number that is not finite."""
    try:
        with safe_open(path, framework="numpy"):  # checks that the header fits the file
            content = np.memmap(path, dtype=np.uint8, mode="r")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(f"{path} holds no tensor")
    body = content[start:]
    for name, tensor in header.items():
        if tensor["dtype"] not in EXPONENT:
            continue
        dtype, exponent = EXPONENT[tensor["dtype"]]
        first, last = tensor["data_offsets"]
        for chunk in range(first, last, CHUNK):
            bits = body[chunk : min(chunk + CHUNK, last)].view(dtype)
            if np.any((bits & exponent) == exponent):
                raise CheckpointError(f"{path}: {name} is not finite (NaN or infinity)")
    return body


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _seal(record: Mapping[str, object]) -> str:
    own = xxhash.xxh3_64_hexdigest(json.dumps(record, sort_keys=True).encode())
    return json.dumps({**record, "self": own}, indent=2, sort_keys=True) + "\n"


def _hash_config(config: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
