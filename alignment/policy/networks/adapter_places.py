"""Where an adapter lies: a file, a folder of one, or a hub id. Nothing is opened that could run code."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import ConfigError
from reward_models.foreign import ForeignCode, first_line

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file that `load_lora_weights` looks for."""
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of PEFT's `save_pretrained`."""

CARD_DATA = "card.json"
"""What a folder of ours says of its training."""
FROZEN = "frozen_adapter_"
"""How the files begin of adapters that a checkpoint was trained on top of."""

_WEIGHTS = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FEW = 5

Found = dict[str, tuple[Path, Mapping[str, object] | None]]
"""A file for each component, and what is told about it beside it, if anything is."""


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
        if not self.name:
            raise ConfigError(f"{self.key}: the name is empty, expected a file, a folder or a hub id (owner/name)")
        path = Path(self.name)
        if path.suffix.lower() in _PICKLES:
            raise self._pickle(path.name)
        if os.path.isdir(path):  # unlike Path's own, of any text
            self._in_folder([entry.name for entry in path.iterdir()])
        elif not os.path.isfile(path):
            if os.path.islink(path):
                raise ConfigError(f"{self.key}: {self.name} is a link to {os.readlink(path)}, where nothing is")
            if os.path.exists(path):
                raise ConfigError(f"{self.key}: {self.name} is neither a file nor a folder")
            if self._hub() is None:
                raise ConfigError(
                    f"{self.key}: there is no file or folder {self.name}, and it is not a hub id (owner/name)"
                )

    @property
    def folder(self) -> Path:
        """The folder of a checkpoint or an export, where this or a file of it is named; else what is named."""
        path = Path(self.name)
        inside = path.parent if os.path.isfile(path) else path
        if path.name.startswith(FROZEN) or inside.name.startswith(FROZEN):
            return path  # a copy of what lay under another
        return next((folder for folder in (inside, inside.parent) if (folder / CARD_DATA).is_file()), inside)

    def lying_under(self) -> dict[int, Path]:
        """Return the copies of what the adapter was trained on top of, where a checkpoint or an export has them.

        They go by their numbers in that training. Each is the main component's file, or that of another which alone
        has one; PEFT has folders in place of files.
        """
        folder = self.folder
        there = sorted(folder.glob(f"{FROZEN}*")) if os.path.isdir(folder) else []
        found: dict[int, Path] = {}
        for place in there:  # the main component's first, whose name is the shortest
            number = place.name.removeprefix(FROZEN).partition(".")[0].partition("_")[0]
            if number.isdecimal():
                found.setdefault(int(number), place / PEFT_FILE if place.is_dir() else place)
        return dict(sorted(found.items()))

    def files(self, main: str, components: Sequence[str]) -> Found:
        """Return the file of each component, fetched where it is on the hub.

        A file whose name ends in that of a component, `style_transformer_2.safetensors`, is for that one, and so is a
        folder of PEFT's. Any other is for the main one, and brings those of the others that lie beside it.

        Args:
            main: The component that a lone file is for.
            components: All that may have one.

        Raises:
            ConfigError: If there is none, or none that is safe and certain.
        """
        self.check()
        path = Path(self.name)
        if path.is_file():
            chosen = path
        elif path.is_dir():
            chosen = path / self._in_folder([entry.name for entry in path.iterdir()])
        else:
            chosen = self._fetched(main, components)
        others = [name for name in components if name != main]
        named = chosen.parent.name if chosen.name == PEFT_FILE else chosen.stem
        ends = {name: re.compile(rf"(?:.*[\W_])?{re.escape(name)}", re.IGNORECASE) for name in others}
        if alone := next((name for name, ending in ends.items() if ending.fullmatch(named)), None):
            return {alone: (chosen, self._told(chosen))}
        beside = {name: _beside(chosen, name, main) for name in others}
        found = {main: chosen, **{name: file for name, file in beside.items() if file is not None}}
        return {name: (file, self._told(file)) for name, file in found.items()}

    def _in_folder(self, names: Sequence[str]) -> str:
        """Return the one of these files that is the adapter."""
        weights = sorted(name for name in names if name.endswith(_WEIGHTS) and not Path(name).name.startswith("."))
        for known in (LORA_FILE, PEFT_FILE):
            if known in weights:
                return known
        if len(weights) == 1:
            return weights[0]
        if weights:
            some = ", ".join(weights[:_FEW]) + (", ..." if len(weights) > _FEW else "")
            raise ConfigError(f"{self.key}: {self.name} holds several adapters; name one of them: {some}")
        if pickles := sorted(name for name in names if Path(name).suffix.lower() in _PICKLES):
            raise self._pickle(pickles[0])
        raise ConfigError(f"{self.key}: {self.name} holds no {_WEIGHTS} file")

    def _told(self, file: Path) -> Mapping[str, object] | None:
        """Return PEFT's settings, which lie beside a file of its name."""
        if file.name != PEFT_FILE:
            return None
        path = file.with_name(PEFT_CONFIG)
        if not path.is_file():
            raise ConfigError(f"{self.key}: {file} lacks its {PEFT_CONFIG}, which has its scale; put it beside it")
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
        if len(parts) == 2 and parts[1].endswith(_WEIGHTS):  # a file that is not there
            return None
        inside = "/".join(parts[2:])
        return ("/".join(parts[:2]), inside or None) if not inside or inside.endswith(_WEIGHTS) else None

    def _fetched(self, main: str, components: Sequence[str]) -> Path:
        """Return the file that the hub has, or had, fetched with what belongs to it."""
        hub = self._hub()
        assert hub is not None  # `check` refuses anything else
        repository, inside = hub
        names = self._listed(repository)
        if inside is not None and inside not in names:
            some = ", ".join(name for name in names if name.endswith(_WEIGHTS)) or f"no {_WEIGHTS} file"
            raise ConfigError(f"{self.key}: {repository} has no {inside}; it has {some}")
        chosen = inside or self._in_folder(names)
        folder = chosen.rpartition("/")[0]
        beside = [PEFT_CONFIG] if chosen.endswith(PEFT_FILE) else []
        beside += [file_name(name, main) for name in components if chosen == LORA_FILE and name != main]
        wanted = [f"{folder}/{name}" if folder else name for name in beside]
        with ForeignCode(self._unreachable):
            from huggingface_hub import hf_hub_download

            for name in wanted:
                if name in names:
                    hf_hub_download(repository, name)
            return Path(hf_hub_download(repository, chosen))

    def _listed(self, repository: str) -> Sequence[str]:
        """Return the names of a repository's files; where the hub is out of reach, those fetched before."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            with ForeignCode(self._unreachable):
                return HfApi().list_repo_files(repository)
        except ConfigError as error:
            try:
                folder = Path(snapshot_download(repository, local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from None
            return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def _unreachable(self, error: BaseException) -> ConfigError:
        return ConfigError(
            f"{self.key}: {self.name} is not on this machine, and the hub did not give it: {first_line(error)}"
        )


def _beside(chosen: Path, component: str, main: str) -> Path | None:
    """Return the file of another component that belongs to a main one's; None where there is none."""
    folder = chosen.parent
    if chosen.name != PEFT_FILE:
        file = chosen.with_name(f"{chosen.stem.removesuffix(f'_{main}')}_{component}{chosen.suffix}")
    elif folder.name.startswith(FROZEN):
        file = folder.with_name(f"{folder.name}_{component}") / PEFT_FILE
    else:
        file = folder / component / PEFT_FILE
    return file if file.is_file() else None
