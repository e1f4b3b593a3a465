from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from alignment.errors import DataError
from alignment.reports import report
from alignment.reports.run_folder import Evaluated, write_evaluation
from reward_models.base import Media
from tests.support.synthetic_run import FEW, evaluated, write_run

VOID = {"meta", "link", "img", "br", "hr", "input", "source"}
DRAWN = {"path", "use", "rect", "g", "svg", "defs", "clippath", "text", "style"}
# What makes a browser fetch: an attribute, a style or a declaration. Base64 has slashes too, so it goes first.
FETCHED = re.compile(
    r"""(?:src|href|srcset|data|action|poster)\s*=\s*["'](?!data:|\#)|url\((?!\#|data:)|@import|https?:"""
)
EMBEDDED = re.compile(r"data:[\w/+-]+;base64,[A-Za-z0-9+/=]+")


class Page(HTMLParser):
    """Reads a page and refuses one whose elements do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in DRAWN, f"<{tag}/> closes itself"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "quickstart", steps=60, hostile=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Return a run whose report has few charts."""
    return write_run(tmp_path_factory.mktemp("runs") / "small", steps=4, only=FEW)


@pytest.fixture(scope="module")
def text(folder) -> str:
    return report.write(folder).read_text()


def test_it_is_well_formed(text):
    page = Page(text)
    assert not page.open
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in referred} <= set(ids)


def test_it_fetches_nothing_and_runs_nothing(text):
    bare = EMBEDDED.sub("data:", text)
    assert not FETCHED.findall(bare)
    assert "//" not in bare
    assert "<script" not in bare
    assert not [name for _, attributes in Page(text).tags for name in attributes if name.startswith("on")]


def test_pictures_are_in_the_page(text):
    pictures = [attributes["src"] for tag, attributes in Page(text).tags if tag == "img"]
    assert len(pictures) >= 2 * 16
    assert all(source.startswith("data:image/") for source in pictures)


def test_a_prompt_is_text_whatever_it_says(text):
    assert "&lt;script&gt;alert(" in text
    assert "\x1b" not in text


def test_it_tells_what_changed(folder, text):
    words = re.sub(r"\s+", " ", Page(text).words)
    summary = json.loads((folder / "summary.json").read_text())["evaluation"]["strict"]
    for end in ("base", "final"):
        assert f"{100 * summary[end]['mean']:.1f} %" in words
        assert f"[{100 * summary[end]['low']:.1f}, {100 * summary[end]['high']:.1f}]" in words
    for said in (
        "Training reward",
        "Held out: strict",
        "Seconds per step",
        "Likelihood ratio",
        "LoRA, rank 16",
        "1.21 GiB",
    ):
        assert said in words
    assert "not finished" not in words


def test_rewards_are_told_one_by_one_and_against_each_other(text):
    words = Page(text).words
    assert "Do the rewards agree?" in words
    assert "-0.68" in words  # mean over the last quarter of the synthetic run
    assert "brevity" in words


def test_colours_are_the_pages_own(text):
    assert not re.search(r"#01001\d|#0[123]0[123]0[123]", text)
    assert "prefers-color-scheme: dark" in text


def test_the_same_folder_gives_the_same_page(folder, text):
    assert report.write(folder).read_text() == text


def test_clips_play(tmp_path):
    folder = write_run(tmp_path / "clips", steps=4, frames=3, only=FEW)
    page = Page(report.write(folder).read_text())
    sources = [attributes["src"].partition(";")[0] for tag, attributes in page.tags if tag in {"img", "video"}]
    assert sources.count("data:image/webp") == 2 * 16
    assert sources.count("data:image/png") == 2 * 16  # each loop's moments, for paper
    assert sources.count("data:video/mp4") == 1
    assert sources.count("data:image/jpeg") == 1  # the film's contact sheet


@pytest.mark.parametrize(
    "missing", ["summary.json", "evaluation", "samples", "metrics.jsonl", "config.resolved.yaml", "environment.json"]
)
def test_a_run_that_is_not_whole_has_a_report(small, tmp_path, missing):
    copy = tmp_path / "run"
    shutil.copytree(small, copy)
    shutil.rmtree(copy / missing) if (copy / missing).is_dir() else (copy / missing).unlink()
    page = Page(report.write(copy).read_text())
    assert ("not finished" in page.words) == (missing == "summary.json")


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        report.write(tmp_path)


def test_evaluations_that_do_not_pair_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", steps=2)
    other = evaluated(0.5)
    write_evaluation(folder, "final", 2, Evaluated(other.prompts, other.seeds + 1, other.scores, other.media))
    with pytest.raises(DataError, match="do not pair"):
        report.write(folder)


def test_large_pictures_are_made_smaller(tmp_path):
    pixels = torch.rand(1, 1, 3, 512, 1024, generator=torch.Generator().manual_seed(0))
    result = Evaluated(("a", "b"), torch.arange(2), {"strict": torch.tensor([0.0, torch.nan])}, Media(pixels))
    for name, step in (("base", 0), ("final", 1)):
        write_evaluation(tmp_path, name, step, result)
    text = report.write(tmp_path).read_text()
    assert text.count("data:image/jpeg") == 2
    assert len(text) < 400_000


def test_an_unscored_picture_says_so(tmp_path):
    pixels = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = Evaluated(("a", "b"), torch.arange(2), {"graded": torch.tensor([0.4, torch.nan])}, Media(pixels))
    for name, step in (("base", 0), ("final", 1)):
        write_evaluation(tmp_path, name, step, result)
    words = Page(report.write(tmp_path).read_text()).words
    assert "not scored" in words
    assert "nan" not in words


def test_main_prints_the_path(small, capsys):
    assert report.main(str(small)) == 0
    assert capsys.readouterr().out.strip() == str(small / "report.html")
