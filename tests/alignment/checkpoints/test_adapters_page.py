"""docs/adapters.md: its commands are run in their order, and what they write is loaded by its own code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from alignment.checkpoints.artifacts import CARD
from alignment.cli import main as cli
from tests.test_docs import DOCS, ROOT, blocks, commands

PAGE = DOCS / "adapters.md"


@pytest.mark.slow
def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("assets", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for language, text in blocks(PAGE):
        if language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)\s*$", text.partition("\n")[0])):
            (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("two red circles\na blue square\n")
    for command in commands(PAGE):
        program, *words = command.words
        if program == "visalign":
            # A run of one step embeds its prompts first; all of a recipe's take longer than the step.
            few = ["data.prompts=prompts.txt"] if words[0] == "train" and "clip.yaml" not in words else []
            assert cli.run([*words, *few]) == 0, command
    pictures = []
    for language, text in blocks(PAGE):
        if language == "python":
            names: dict[str, object] = {}
            exec(text, names)
            pictures.append(names["pipe"])
    made = [
        pipe("a red circle", height=32, width=32, num_inference_steps=1, max_sequence_length=12, output_type="pt",
             generator=torch.Generator().manual_seed(0)).images
        for pipe in pictures
    ]  # fmt: skip
    assert len(made) == 2
    torch.testing.assert_close(made[0], made[1])
    with safe_open("out/comfyui/pytorch_lora_weights.safetensors", framework="pt") as file:
        header = file.metadata()
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys() if "lora" in name} == {"BF16"}  # noqa: SIM118
    assert header["base_model"] == "tiny_flux"
    assert (header["run"], header["step"]) == ("first", "1")
    assert (header["modelspec.trigger_phrase"], header["modelspec.license"]) == ("in shapes", "apache-2.0")
    with safe_open("out/gguf-ready/transformer.safetensors", framework="pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert kinds["blocks.0.self_attn.q.weight"] == "BF16"
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in load_file(
        "out/kohya/pytorch_lora_weights.safetensors"
    )
    card = Path("out/comfyui", CARD).read_text()
    assert "models/loras" in card
    assert "license: apache-2.0" in card
    assert "Trigger: `in shapes`" in card
