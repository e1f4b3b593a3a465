"""Places on a disk that a run writes to, and that its adapters are in: whether they are, before anything is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from alignment.errors import ConfigError
from alignment.policy.networks.spec import PolicySpec

LONGEST_PART = 255
"""Bytes of a name between two slashes, on every file system in use."""


def unwritable(folder: Path) -> str | None:
    """Return why nothing can be written to a folder, which may not be there yet; None where that works.

    It is tried, with a folder that is gone at once: permissions do not tell of disks that are read-only, or of root.
    """
    for part in folder.parts:
        if (size := len(os.fsencode(part))) > LONGEST_PART:
            return f"{part[:40]}... has {size} bytes, and a name has at most {LONGEST_PART}; shorten it"
    exists = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not exists.is_dir():
        return f"{exists} is a file, so there can be no folder {folder}"
    try:
        with tempfile.TemporaryDirectory(prefix=".visalign-", dir=exists):
            return None
    except OSError as error:
        return f"{exists} cannot be written to ({error.strerror}); choose another folder or mend its permissions"


def misplaced(policy: PolicySpec) -> Iterator[tuple[str, str]]:
    """Yield the keys of files of weights that are not where the config says, as far as can be seen now, and why."""
    if policy.single_file is not None:
        from alignment.policy.networks.single_file import misfiled

        if problem := misfiled(policy):
            yield "policy.single_file", problem
    places = {f"policy.adapters.{k}.path": adapter.path for k, adapter in enumerate(policy.adapters)}
    if policy.lora is not None and policy.lora.start is not None:
        places["policy.lora.start"] = policy.lora.start
    if not places:
        return
    from alignment.policy.networks.adapter_places import Place

    for key, place in places.items():
        try:
            Place(key, place).check()
        except ConfigError as error:
            yield key, str(error).removeprefix(f"{key}: ")
