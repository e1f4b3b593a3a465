"""The table of docs/adapters.md: which pipeline's adapters are written in which format, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.pipelines.zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs/adapters.md"
FORMATS = {
    "diffusers": "diffusers", "peft": "PEFT", "comfyui": "ComfyUI", "kohya": "kohya", "merged": "merged",
    "gguf-ready": "GGUF-ready",
}  # fmt: skip
YES, NO, PART = "✓", "no", "by network"
"""PART: diffusers loads them into the network, but not through the pipeline."""
BEGIN, END = "<!-- written by `make pipelines-table` -->", "<!-- end -->"

Row = tuple[str, str, Sequence[str]]
"""Name of a member, classes of its pipeline and its trained network, a mark for each format."""


def write(rows: Sequence[Row]) -> None:
    """Write the table; pipelines that were not run this time keep what they had."""
    text, found = PAGE.read_text(encoding="utf-8"), {name: (kind, marks) for name, kind, marks in rows}
    known = {**read(), **{name: [kind, *marks] for name, (kind, marks) in found.items()}}
    lines = [f"| pipeline | trained | {' | '.join(FORMATS.values())} |", "|---|---|" + ":-:|" * len(FORMATS)]
    lines += [f"| {name.replace('_', ' ')} | {' | '.join(known[name])} |" for name in ZOO if name in known]
    table = "\n".join([BEGIN, "", *lines, "", END])
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL), encoding="utf-8")


def read() -> Mapping[str, list[str]]:
    """Return the page's cells by the name of the member: its network, then a mark for each format."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if "|" in line]
    return {row[0].replace(" ", "_"): row[1:] for row in rows[2:]}
