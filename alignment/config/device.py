"""The device that a command line names."""

from __future__ import annotations

import torch

from alignment.errors import ConfigError, EnvironmentProblem


def parse_device(name: str) -> torch.device:
    """Return the device of `--device NAME`: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: If the name is none of these.
        EnvironmentProblem: If this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _unknown(name) from error
    if device.type not in ("cpu", "cuda"):
        raise _unknown(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"--device {name} was asked for, but torch sees {torch.cuda.device_count() or 'no'} GPU; "
            "choose another, auto or cpu"
        )
    return device


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
