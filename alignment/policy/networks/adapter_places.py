"""Where an adapter lies: a file, a folder of one, or a hub id. Nothing is opened that could run code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import ConfigError

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file that `load_lora_weights` looks for."""
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of PEFT's `save_pretrained`."""

_WEIGHTS = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FEW = 5

Found = dict[str, tuple[Path, Mapping[str, object]]]
"""A file for each component, and what is told about it beside it."""


def file_name(component: str, main: str) -> str:
    """Return the name of a component's file; the main one has the name that diffusers looks for."""
    return LORA_FILE if component == main else f"pytorch_lora_weights_{component}{_WEIGHTS}"


@dataclass(frozen=True)
class Place:
    """A place that a config names.

    Attributes:
        key: Of the config.
        name: File, folder, hub id, or a file of a hub id (`owner/name/file.safetensors`).
    """

    key: str
    name: str

    def check(self) -> None:
        """Refuse what can be seen to be none before anything is loaded; the hub is not asked.

        Raises:
            ConfigError: If nothing is there, or a pickle.
        """
        path = Path(self.name)
        if path.suffix in _PICKLES:
            raise self._pickle(path.name)
        if path.is_dir():
            self._in_folder([entry.name for entry in path.iterdir()])
        elif not path.is_file() and self._hub() is None:
            raise ConfigError(
                f"{self.key}: there is no file or folder {self.name}, and it is not a hub id (owner/name)"
            )

    def files(self, main: str, components: Sequence[str]) -> Found:
        """Return the file of each component, fetched where it is on the hub.

        Args:
            main: The component that a lone file is for.
            components: All that may have one.

        Raises:
            ConfigError: If there is none, or none that is safe and certain.
        """
        self.check()
        path = Path(self.name)
        if path.is_file():
            return {main: (path, {})}
        if not path.is_dir():
            return {main: (self._fetched(), {})}
        chosen = self._in_folder([entry.name for entry in path.iterdir()])
        told = self._told(path / PEFT_CONFIG) if chosen == PEFT_FILE and (path / PEFT_CONFIG).is_file() else {}
        others = {name: path / file_name(name, main) for name in components if name != main and chosen == LORA_FILE}
        return {main: (path / chosen, told), **{name: (file, {}) for name, file in others.items() if file.is_file()}}

    def _in_folder(self, names: Sequence[str]) -> str:
        """Return the one of these files that is the adapter."""
        weights = sorted(name for name in names if name.endswith(_WEIGHTS))
        for known in (LORA_FILE, PEFT_FILE):
            if known in weights:
                return known
        if len(weights) == 1:
            return weights[0]
        if weights:
            some = ", ".join(weights[:_FEW]) + (", ..." if len(weights) > _FEW else "")
            raise ConfigError(f"{self.key}: {self.name} holds several adapters; name one of them: {some}")
        if pickles := sorted(name for name in names if Path(name).suffix in _PICKLES):
            raise self._pickle(pickles[0])
        raise ConfigError(f"{self.key}: {self.name} holds no {_WEIGHTS} file")

    def _told(self, path: Path) -> Mapping[str, object]:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.key}: {path} cannot be read: {error}") from error
        if not isinstance(told, dict):
            raise ConfigError(f"{self.key}: {path} is not a JSON object")
        if told.get("peft_type", "LORA") not in ("LORA", "LOHA", "LOKR"):
            raise ConfigError(f"{self.key}: {path}: peft_type is {told['peft_type']}; LORA, LOHA and LOKR can be read")
        return told

    def _pickle(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.key}: {name} is a pickle, which can run code when it is opened; save its tensors as {_WEIGHTS} "
            "(safetensors.torch.save_file) where you trust it"
        )

    def _hub(self) -> tuple[str, str | None] | None:
        """Return the hub id and the file of it that the name says, if it looks like one."""
        parts = self.name.split("/")
        if len(parts) < 2 or not all(parts) or parts[0].startswith(".") or Path(parts[0]).is_dir():
            return None
        inside = "/".join(parts[2:])
        return ("/".join(parts[:2]), inside or None) if not inside or inside.endswith(_WEIGHTS) else None

    def _fetched(self) -> Path:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        hub = self._hub()
        assert hub is not None  # `check` refuses anything else
        try:
            file = hub[1] or self._in_folder(HfApi().list_repo_files(hub[0]))
            return Path(hf_hub_download(hub[0], file))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
            raise ConfigError(
                f"{self.key}: {self.name} is not on this machine, and the hub did not give it: {reason}"
            ) from error
