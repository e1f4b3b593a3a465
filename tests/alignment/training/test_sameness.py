"""What tells the processes of a run apart before they train."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alignment.training import sameness


def test_another_line_of_code_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "checked_out"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sameness, "PACKAGES", ("checked_out",))
    before = sameness.code()
    assert sameness.code() == before
    (package / "module.py").write_text("x = 2\n")
    after = sameness.code()
    assert {key for key in before if before[key] != after[key]} == {"the code of visalign"}
    assert after["Python"] == ".".join(map(str, sys.version_info[:3]))
