"""Whether all processes of a run are made from the same: config, code, libraries, prompts and weights.

Machines of a cluster drift apart: an old checkout, another release of a library, a copy of the data that was not
renewed. Such a run would train, and nobody could say what.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from alignment.errors import ConfigError
from alignment.world import World

PACKAGES = ("alignment", "reward_models", "samplers")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")
PLACES = (
    "data.",
    "evaluation.prompts",
    "policy.pipeline",
    "policy.adapters",
    "policy.lora.start",
    "policy.single_file",
)
"""Keys under which a machine may have a path of its own; what is there is compared."""


def check_same_start(world: World, config: Mapping[str, object]) -> None:
    """Refuse processes that were started with another config, code or library than the first.

    Args:
        world: The processes.
        config: This one's resolved config.

    Raises:
        ConfigError: On every process, naming what differs, both values and the process.
    """
    if world.processes > 1:
        keys = {key: value for key, value in _leaves(config) if not key.startswith(PLACES)}
        check_same(world, {**keys, **code()})


def check_same(world: World, facts: Mapping[str, str]) -> None:
    """Refuse processes for which something is not what it is on the first.

    Args:
        world: The processes.
        facts: What has to be the same, by what it is.

    Raises:
        ConfigError: On every process, naming what differs, both values and the process.
    """
    first, *others = world.each(dict(facts))
    for rank, other in enumerate(others, start=1):
        differing = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if differing:
            both = [f"{key} is {other.get(key)}, on process 0 {first.get(key)}" for key in differing[:3]]
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ConfigError(
                f"process {rank} of {world.processes} is not like the first: {'; '.join(both)}{more}. Start all "
                "processes with the same config, code, libraries and files"
            )


def code() -> dict[str, str]:
    """Return a hash of the code of this project, and the releases of the libraries that compute."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        for root in map(Path, spec.submodule_search_locations):
            for file in sorted(root.rglob("*.py")):
                digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    releases = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"the code of visalign": digest.hexdigest()[:16], "Python": platform.python_version(), **releases}


def _leaves(config: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(config)
