"""The benchmark of generators: its table says what `eval.json` holds, and its page changes in one section alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.benchmarks.generators import SECTION, lines, main, write


def change(measure: str, verdict: str, *moved: float | None) -> dict[str, Any]:
    found = dict(zip(("mean", "low", "high"), moved, strict=True))
    return {"measure": measure, "base": {"mean": 0.5}, "change": found, "verdict": verdict}


FOUND = {
    "suites": {
        "shapes": {
            "prompts": 9,
            "pictures": 18,
            "comparisons": {
                "one": {
                    "changes": [change("shapes", "better", 0.25, 0.125, 0.375)],
                    "looks": [change("contrast", "even", 0.0, -0.01, 0.01)],
                    "drift": {"pixels": {"mean": 0.1}},
                },
                "two": {
                    "changes": [change("shapes", "even", 0.1, None, None)],
                    "looks": [],
                    "drift": {"pixels": {"mean": 0.0}},
                },
            },
        }
    }
}


def test_the_table_says_what_was_found() -> None:
    assert lines(FOUND) == [
        "| measure | base | one | two |",
        "|---|---|---|---|",
        "| shapes | 0.5 | **+0.25 [+0.12, +0.38]** | +0.1 [n/a, n/a] |",
        "| contrast | 0.5 | +0 [-0.01, +0.01] |  |",
        "| distance from the base (pixels) | 0 | 0.1 | 0 |",
    ]


def test_the_page_changes_in_its_section_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- {SECTION} -->\nold\n<!-- end of {SECTION} -->\nafter\n", encoding="utf-8")
    for _ in range(2):
        write(page, FOUND, "on a laptop")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n<!-- {SECTION} -->\n| measure |")
    assert text.endswith(f"\n<!-- end of {SECTION} -->\nafter\n")
    assert "9 prompts, 18 pictures of each subject; on a laptop." in text
    assert "old" not in text


def test_what_is_only_tried_goes_into_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--limit", "2", "--table", str(tmp_path / "page.md")])
    assert "goes into no page" in capsys.readouterr().err
