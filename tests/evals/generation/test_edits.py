"""Pictures that are edited: a pipeline gets the one to start from, rewards see it, and the page shows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from alignment.cli.main import run
from alignment.data.random_streams import Draw
from evals.generation.generate import generate
from evals.generation.plan import EvalPlan, Making, Share
from evals.generation.progress import Bar
from evals.generation.subjects import parse
from evals.suites.edits.imgedit import ImgEdit
from evals.voting.command import pairs_of
from tests.pipelines.zoo.edits import flux_kontext

LEVEL = 1  # of 255: rows of one call and rows alone differ by rounding, which may fall on either side
EDITS = {"12": "1.png", "7": "2.png"}
LEVELS = {"1.png": (200, 40, 0), "2.png": (20, 90, 160)}
PROMPT = "make it red"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that edits, and one instruction for two pictures in the layout of ImgEdit."""
    folder = tmp_path_factory.mktemp("edits")
    flux_kontext().pipe.save_pretrained(folder / "pipe")
    (folder / "copy" / "singleturn").mkdir(parents=True)
    for name, levels in LEVELS.items():
        Image.new("RGB", (16, 16), levels).save(folder / "copy" / "singleturn" / name)
    edits = {key: {"id": name, "prompt": PROMPT, "edit_type": f"kind {key}"} for key, name in EDITS.items()}
    (folder / "copy" / "singleturn" / "singleturn.json").write_text(json.dumps(edits), encoding="utf-8")
    (folder / "theirs").mkdir()
    for key in EDITS:  # as the publishers' scorer wants files called
        Image.new("RGB", (16, 16), (220, 40, 0)).save(folder / "theirs" / f"{key}.png")
    return folder


def test_a_pipeline_edits_and_is_compared_with_pictures_of_others(given: Path) -> None:
    member = flux_kontext()
    call = [f"{name}={value}" for name, value in member.call.items()]
    suite = ("--on", "imgedit", f"folder={given / 'copy'}", "--reward", "tests.support.redder:Redder")
    words = (given / "pipe", f"theirs={given / 'theirs'}", "--call", *call, *suite, "--output", given / "out")
    assert run(["eval", *map(str, words)]) == 0

    pipe = FluxKontextPipeline.from_pretrained(given / "pipe")
    pipe.set_progress_bar_config(disable=True)
    redder = []
    for item, name in enumerate(EDITS.values()):
        generator = torch.Generator().manual_seed(Draw(0).key("evaluation", item, 0))
        source = Image.open(given / "copy" / "singleturn" / name)
        plain = np.asarray(pipe(source, PROMPT, generator=generator, **member.call).images[0]).astype(int)
        own = np.asarray(Image.open(given / "out" / "samples" / "pipe" / "imgedit" / f"{item:05d}-0.png")).astype(int)
        assert np.abs(own - plain).max() <= LEVEL
        redder.append((own[..., 0].mean() - LEVELS[name][0]) / 255)

    found = json.loads((given / "out" / "eval.json").read_text(encoding="utf-8"))["suites"]["imgedit"]
    scores = {name: subject["scores"]["Redder"]["mean"] for name, subject in found["subjects"].items()}
    assert scores["pipe"] == pytest.approx(np.mean(redder), abs=1e-6)
    assert scores["theirs"] == pytest.approx((20 + 200) / 2 / 255, abs=1e-6)
    assert "its publishers use GPT-4o" in found["notes"][-1]

    page = (given / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<span>made from</span>") == page.count('<span class="after">') > 0


def test_a_picture_that_is_missing_is_called_as_the_others_are(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = ("--on", "imgedit", f"folder={given / 'copy'}", "--reward", "tests.support.redder:Redder")
    for there, sought in (("12", "7"), ("00000-0", "00001-0"), ("unlike", "00000-0 or 12")):
        theirs = tmp_path / f"named {there}"
        theirs.mkdir()
        Image.new("RGB", (16, 16)).save(theirs / f"{there}.png")
        assert run(["eval", str(theirs), *map(str, suite), "--output", str(tmp_path / "out")]) == 2
        assert f"pictures of imgedit: {sought} ('{PROMPT}')" in capsys.readouterr().err


def test_a_pipeline_that_takes_no_pictures_is_told_without_the_words_of_training(
    given: Path, flux_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = ("--on", "imgedit", f"folder={given / 'copy'}", "--reward", "tests.support.redder:Redder")
    assert run(["eval", str(flux_folder), *map(str, suite), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "suite imgedit brings image, but FluxPipeline has no such argument; it takes no pictures" in said
    assert "data." not in said


def test_people_who_choose_see_what_an_edit_was_made_from(given: Path, tmp_path: Path) -> None:
    for name, level in (("one", 100), ("other", 200)):
        (tmp_path / name).mkdir()
        for key in EDITS:
            Image.new("RGB", (16, 16), (level, 0, 0)).save(tmp_path / name / f"{key}.png")
    suite = {"imgedit": ImgEdit(str(given / "copy"))}
    subjects = parse([str(tmp_path / "one"), str(tmp_path / "other")])
    plan = EvalPlan(subjects, suite, {}, {}, Making(), tmp_path / "made")
    generate(plan, Share(), Bar(quiet=True))
    pairs = pairs_of(plan, tmp_path)
    found = [np.asarray(Image.open(tmp_path / "media" / pair.source))[0, 0].tolist() for pair in pairs]
    assert found == [list(LEVELS[name]) for name in EDITS.values()]
