"""What others wrote is read on a terminal and does not drive it: servers, users' functions, files, names."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import pytest
from PIL import Image
from rich.markup import escape
from rich.table import Table

from alignment.cli import main as cli
from alignment.cli import warned
from alignment.reports.console import Console
from alignment.reports.terminal import visible

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egnp\udc80"
SHOWN = r"\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egnp\udc80"


def unreadable(text: str) -> str:
    return "".join(letter for letter in text if letter in HOSTILE and not letter.isprintable())


def test_what_would_drive_a_terminal_is_made_visible() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("two\nlines\tand caf\u00e9 \U0001f469\u200d\U0001f52c") == (
        "two\nlines\tand caf\u00e9 \U0001f469\u200d\U0001f52c"
    )


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    name = HOSTILE.replace("\udc80", "")
    assert cli.run(["report", name]) == 2
    said = capsys.readouterr().err
    assert SHOWN.replace(r"\udc80", "") in said
    assert not unreadable(said)


def test_what_a_users_function_raises_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text(f"def score(pixels, prompts):\n    raise ValueError({HOSTILE!a})\n")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    Path("in.jsonl").write_text(json.dumps({"prompt": "a", "media": "a.png"}))
    words = ["--input", "in.jsonl", "--output", "out.jsonl"]
    assert cli.run(["rewards", "score", "function", "call=hostile:score", *words]) == 2
    said = capsys.readouterr().err
    assert SHOWN.replace(r"\r", " ") in said
    assert not unreadable(said)


def test_a_warning_is_shown_as_it_is() -> None:
    assert warned.format_warning(UserWarning(HOSTILE), UserWarning, "file", 1) == f"warning: {SHOWN}\n"
    assert warnings.formatwarning is not warned.format_warning


def test_a_table_and_a_line_are_shown_as_they_are() -> None:
    table = Table("what")
    table.add_row(f"[red]{escape(HOSTILE)}[/]")
    plain, styled = (Console(file=io.StringIO(), force_terminal=coloured, width=100) for coloured in (False, True))
    for console in (plain, styled):
        console.print(table)
        console.print(HOSTILE, markup=False)
    assert "\x1b[31m" in styled.file.getvalue(), "what rich itself says stays"
    assert r"\x1b[2J" in plain.file.getvalue()
    assert not unreadable(plain.file.getvalue())
    for code in ("\x1b[2J", "\x1b]0", "\x9b", "\u202e"):
        assert code not in styled.file.getvalue()
