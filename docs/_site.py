"""What the site has beside the pages of this folder: the reference, from the classes, and files of the root.

mkdocs calls these hooks. A link to a file that is no page becomes one to the repository, where `repo_url` says where
that is, and the file's name otherwise; so the same pages serve a checkout, a forge and the site.
"""

from __future__ import annotations

import itertools
import json
import posixpath
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PROJECT = {
    "SECURITY.md": "Security",
    "CONTRIBUTING.md": "Contributing",
    "DECISIONS.md": "Decisions",
    "CHANGELOG.md": "Changes",
}
"""Files of the root that become pages, with their titles."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
# Code between fences, which has brackets that are no links.
FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Ask the command line what a config can say, and put what is generated into the navigation."""
    command = [sys.executable, "-m", "alignment", "config", "--json"]
    asked = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    config.extra["reference"] = json.loads(asked.stdout)
    pages = [{_title(kind): f"reference/{kind}.md"} for kind in config.extra["reference"]]
    assert config.nav is not None
    config.nav += [{"Reference": pages}, {"Project": [{title: _project(name)} for name, title in PROJECT.items()]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name in PROJECT:
        files.append(File.generated(config, _project(name), content=(ROOT / name).read_text(encoding="utf-8")))
    for kind, told in config.extra["reference"].items():
        files.append(File.generated(config, f"reference/{kind}.md", content=_reference(kind, told)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to their pages, or into their names."""
    here = page.file.src_uri
    place = {_project(name): name for name in PROJECT}.get(here, f"docs/{here}")

    def linked(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        uri = _project(path) if path in PROJECT else path.removeprefix("docs/") if path.startswith("docs/") else None
        if uri is not None and files.get_file_from_path(uri) is not None:
            return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return found[0]  # mkdocs says that it leads nowhere
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(linked, text) for text in parts[::2]]
    return "".join(parts)


def _project(name: str) -> str:
    return f"project/{name.lower()}"


def _title(kind: str) -> str:
    return {"run": "A run", "vlms": "VLMs"}.get(kind, kind.replace("_", " ").capitalize())


def _reference(kind: str, told: Any) -> str:
    """Return the page of one kind: every type with its docstring and its fields."""
    if kind == "run":
        command = "What stands at the top of a config. `visalign config run` prints the same."
        return "\n".join([f"# {_title(kind)}", "", command, "", *_fields(told)])
    lines = [f"# {_title(kind)}", "", f"Names for `type:`. `visalign config {kind}` prints the same.", ""]
    for name, entry in told.items():
        summary, _, rest = entry["doc"].partition("\n")
        before, _, after = rest.partition("Attributes:\n")
        lines += [f"## {name}", "", _plain(summary), "", *_prose(before), *_prose(after.partition("\n\n")[2])]
        lines += _fields(entry["fields"]) if entry["fields"] else ["It has no fields.", ""]
    return "\n".join(lines)


def _prose(text: str) -> list[str]:
    """Return part of a docstring as paragraphs; lines that are indented in it are formulas."""
    lines: list[str] = []
    for indented, group in itertools.groupby(text.splitlines(), key=lambda line: line.startswith("    ")):
        block = "\n".join(group).strip("\n")
        lines += ["```text", textwrap.dedent(block), "```", ""] if indented else [_plain(block), ""]
    return lines


def _fields(fields: list[dict[str, Any]], prefix: str = "") -> list[str]:
    """Return a table of fields, and one of the fields inside each that is a mapping."""
    rows, inside = ["| field | type | default | |", "|---|---|---|---|"], []
    for field in fields:
        name = f"{prefix}{field['name']}"
        default = "*required*" if field["required"] else f"`{field['default']}`" if field["default"] else ""
        rows.append(f"| `{field['name']}` | {_plain(field['type'])} | {default} | {_plain(field['says'])} |")
        if field["fields"]:
            inside += [f"Inside **`{name}`**:", "", *_fields(field["fields"], f"{name}.")]
    return [*rows, "", *inside]


def _plain(text: str) -> str:
    """Return text in which nothing outside of backquotes is markup."""
    pieces = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(piece if piece.startswith("`") else re.sub(r"([*_<\[])", r"\\\1", piece) for piece in pieces)
