"""The small run that is put around a pipeline which is examined without a config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from PIL import Image

from alignment.config import checks, overlay, yaml_nodes
from alignment.config.load import load
from alignment.config.run import Run
from alignment.errors import ConfigError
from alignment.policy.call_arguments import parameters
from alignment.policy.networks.loading import declared_class
from alignment.preflight.doctor.laws_of_the_pipeline import FEW, PICTURES, PLAIN, PROMPTS, SIDE, STEPS


def plain_run(pipeline: str, call: Sequence[str], overrides: Sequence[str], folder: Path) -> Run:
    """Return a small run of `pipeline`.

    Args:
        pipeline: Folder or hub id.
        call: Arguments of its `__call__`, each `name=value` or the path of a YAML file that holds several.
        overrides: `key=value` words for the rest of the run.
        folder: Where prompts and made-up pictures are written.

    Raises:
        ConfigError: If a word is neither `name=value` nor a file, or the call does not fit the pipeline.
        PipelineError: If there is no pipeline.
    """
    words = [f"policy.call.{word}" for word in call if "=" in word]
    values = {"pipeline": pipeline, "prompts": str(folder / "prompts.jsonl"), "folder": str(folder)}
    path = folder / "pipeline.yaml"
    plain = yaml.safe_load(PLAIN.format(**{key: json.dumps(value) for key, value in values.items()}))
    for arguments in (_read_call(Path(word)) for word in call if "=" not in word):
        plain["policy"]["call"] |= arguments
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    run = load(str(path), [*words, *overrides])
    for key, message in checks.call_sizes(run.policy.call, "policy.call"):
        raise ConfigError(f"{key}: {message}")
    kind = declared_class(run.policy)
    known = () if kind is None else parameters(kind)
    arguments = {STEPS: FEW, **run.policy.call} if STEPS in known else run.policy.call
    _write_prompts(folder, [name for name in PICTURES if name in known and name not in arguments], arguments)
    return replace(run, policy=replace(run.policy, call=arguments))


def _read_call(path: Path) -> Mapping[str, object]:
    if not path.exists():
        raise ConfigError(f"--call {path}: neither name=value nor a YAML file")
    arguments = yaml_nodes.plain(overlay.read(path))
    assert isinstance(arguments, dict)  # else `read` refuses it
    return arguments


def _write_prompts(folder: Path, pictures: Sequence[str], call: Mapping[str, object]) -> None:
    """Write prompts that bring the same made-up pictures: colours that run, and a mask of the middle."""
    width, height = (int(str(call.get(name) or SIDE)) for name in ("width", "height"))
    across = torch.linspace(0, 255, width).expand(height, -1)
    down = torch.linspace(0, 255, height)[:, None].expand(-1, width)
    colours = torch.stack([across, down, 255 - across], dim=-1)
    middle = torch.zeros_like(colours)
    middle[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 255
    for name in pictures:
        pixels = middle if "mask" in name else colours
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{name}.png")
    lines = [{"prompt": text, **{name: f"{name}.png" for name in pictures}} for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
