"""Adapters as `--as kohya` writes them, loaded by the code of sd-scripts and musubi-tuner, for published sizes.

Run with `make oracle`. Both are cloned into `.oracle-kohya` (or stand where `$VISALIGN_SD_SCRIPTS` and
`$VISALIGN_MUSUBI` say), and run on the CPU in an environment of their own that borrows PyTorch from ours.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from alignment.policy.networks.module_names import Slot, names_of
from tests.oracle.test_comfyui import CASES
from tests.support.adapters import export_ones
from tests.support.environments import cloned, environment

pytestmark = pytest.mark.oracle

HOME = Path(__file__).parents[2] / ".oracle-kohya"
SOURCES = {
    "sd-scripts": ("https://github.com/kohya-ss/sd-scripts", "VISALIGN_SD_SCRIPTS", "."),
    "musubi-tuner": ("https://github.com/kohya-ss/musubi-tuner", "VISALIGN_MUSUBI", "src"),
}
ALONE = ("einops", "toml", "voluptuous", "imagesize", "opencv-python-headless", "ftfy", "sentencepiece")
"""What their code imports that we do not have."""

MODELS: dict[str, tuple[str, str]] = {
    "stable diffusion": ("sd-scripts", "sd15"),
    "stable diffusion xl": ("sd-scripts", "sdxl"),
    "stable diffusion 3.5": ("sd-scripts", "sd3"),
    "flux": ("sd-scripts", "flux"),
    "chroma": ("sd-scripts", "chroma"),
    "lumina 2": ("sd-scripts", "lumina"),
    "flux 2": ("musubi-tuner", "flux2"),
    "hunyuan video": ("musubi-tuner", "hunyuan"),
    "qwen image": ("musubi-tuner", "qwen"),
    "z image": ("musubi-tuner", "zimage"),
    "wan": ("musubi-tuner", "wan"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, tuple[int, ...]], str, Any]]:
    """Return, for each case, the shapes of its modules, the network's class, and what kohya's code made of the file."""
    folder, found = tmp_path_factory.mktemp("kohya"), {}
    python = environment(HOME / "python", ALONE)
    for program, (address, variable, inside) in SOURCES.items():
        source = cloned(address, HOME / program, variable)
        cases = [case for case in MODELS if MODELS[case][0] == program]
        jobs, shapes, kinds = [], {}, {}
        for case in cases:
            file = folder / f"{case}.safetensors"
            shapes[case], kinds[case] = export_ones(CASES[case][0], file, "kohya")
            jobs.append({"model": MODELS[case][1], "file": str(file)})
        (folder / "jobs.json").write_text(json.dumps(jobs))
        words = [python, Path(__file__).with_name("kohya.py"), source / inside, folder / "jobs.json"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        answers = json.loads(done.stdout.splitlines()[-1])
        found |= {case: (shapes[case], kinds[case], answer) for case, answer in zip(cases, answers, strict=True)}
    return found


@pytest.mark.parametrize("case", MODELS)
def test_kohyas_code_takes_every_module_and_nothing_else(case: str, told: Any) -> None:
    shapes, kind, answer = told[case]
    assert (answer["missing"], answer["unexpected"]) == ([], [])
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    for name, shape in shapes.items():
        slot = cast(Slot, names_of(kind).slot("kohya", name))
        rows[slot.name] = rows.get(slot.name, 0) + shape[0]
        columns[slot.name] = shape[1]
    wanted = sorted([rows[name], columns[name], 1.0] for name in rows)
    assert sorted(answer["found"].values()) == wanted
    if case != "stable diffusion xl":  # whose names it changes to its own
        assert answer["found"] == {name: [rows[name], columns[name], 1.0] for name in rows}
