"""The pages: every one is reachable, every link leads somewhere, and every command on them is one that exists."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ROOTS = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
CODE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]*`")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.")
"""A word in capitals stands for what the reader puts there: CONFIG, NAME, PATH."""


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the target and the anchor of every link of a page that stays in the repository."""
    text = INLINE.sub("", CODE.sub("", page.read_text(encoding="utf-8")))
    for target, anchor in LINK.findall(text):
        if not re.match(r"[a-z]+:", target):
            yield target, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as forges and mkdocs make them."""
    headings = re.findall(r"^#+ +(.*)$", CODE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {re.sub(r"\s+", "-", heading.strip()) for heading in plain}


def navigation() -> set[str]:
    """Return the pages that mkdocs.yml names."""
    pending, found = [yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]], set()
    while pending:
        entry = pending.pop()
        if isinstance(entry, str):
            found.add(entry)
        else:
            pending.extend(entry.values() if isinstance(entry, dict) else entry)
    return found


@pytest.mark.parametrize("page", [*PAGES, *ROOTS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target, anchor in links(page):
        there = (page.parent / target).resolve() if target else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            lost.append(f"{target}#{anchor}")
    assert lost == []


def test_every_page_is_reached_from_the_index() -> None:
    reached, pending = set(), [DOCS / "index.md"]
    while pending:
        page = pending.pop()
        if page in reached:
            continue
        reached.add(page)
        there = ((page.parent / target).resolve() for target, _ in links(page) if target.endswith(".md"))
        pending.extend(found for found in there if found.parent == DOCS)
    assert [page.name for page in PAGES if page not in reached] == []


def test_the_site_has_every_page() -> None:
    assert navigation() == {page.name for page in PAGES}


# ---- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command of a page, as words."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of every block of code between fences, without its indentation."""
    found = CODE.findall(page.read_text(encoding="utf-8"))
    return [(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, language, text in found]


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands in the blocks that are a shell's: between fences, or indented by four."""
    rest = CODE.sub("", page.read_text(encoding="utf-8"))
    indented = "\n".join(line[4:] for line in rest.splitlines() if line.startswith("    "))
    for text in (*(text for language, text in blocks(page) if language == "bash"), indented):
        for line in text.replace("\\\n", " ").splitlines():
            words = split(line)
            if words and words[0] in ("visalign", "accelerate", "torchrun", "make", "python"):
                yield Command(page.name, words)


def split(line: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(line, comments=True))
    except ValueError:  # a quotation that ends on another line: not a command of ours
        return ()


COMMANDS = [command for page in (ROOT / "README.md", *PAGES) for command in commands(page)]


def test_there_are_commands_to_look_at() -> None:
    assert {"visalign", "accelerate", "torchrun", "make"} <= {command.words[0] for command in COMMANDS}
    assert len(COMMANDS) > 50


def test_targets_and_modules_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    lost = []
    for command in COMMANDS:
        program, *words = command.words
        if program == "make":
            lost += [str(command) for word in words if "=" not in word and word not in targets]
        elif "-m" in words:
            module = words[words.index("-m") + 1].replace(".", "/")
            if module not in ("venv", "pip") and not ((ROOT / f"{module}.py").exists() or (ROOT / module).is_dir()):
                lost.append(str(command))
        elif program == "python" and not PLACEHOLDER.search(words[0]) and not (ROOT / words[0]).exists():
            lost.append(str(command))
    assert lost == []


def test_python_on_the_pages_can_be_read() -> None:
    for page in (ROOT / "README.md", *PAGES):
        for language, text in blocks(page):
            if language == "python":
                ast.parse(text, filename=page.name)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a checkout has, where the files stand that pages show (`# NAME.yaml` on the first line)."""
    for name in ("assets", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for page in (ROOT / "README.md", *PAGES):
        for _, text in blocks(page):
            name = re.match(r"# ([\w-]+\.(?:yaml|py))\s*$", text.partition("\n")[0])
            if name:
                (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_configs_that_pages_show_load(workplace: Path) -> None:
    from alignment.config.load import load

    shown = sorted(path.name for path in workplace.glob("*.yaml"))
    assert {"my.yaml", "smallest.yaml", "first_flux.yaml"} <= set(shown)
    for name in shown:
        load(name)


def test_the_readmes_config_is_whole_and_can_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from alignment.cli import main as cli

    assert "extends" not in yaml.safe_load((workplace / "my.yaml").read_text())
    assert cli.run(["train", "my.yaml", "--dry-run"]) == 0
    assert "This run, " in capsys.readouterr().out


def test_commands_on_the_pages_are_understood(workplace: Path) -> None:
    refused = {}
    for command in COMMANDS:
        words = list(command.words)
        if words[0] in ("accelerate", "torchrun"):
            words = ["visalign", "train", *words[words.index("alignment.train") + 1 :]]
        if words[0] != "visalign" or words[1].isupper() or "..." in words:
            continue
        try:
            understand(words[1:])
        except (SystemExit, ValueError, RuntimeError) as error:
            refused[str(command)] = str(error)
    assert refused == {}


def understand(words: list[str]) -> None:
    """Read a command line as `visalign` does, and construct what it names; nothing is started."""
    from alignment.cli import main as cli
    from alignment.config import build
    from alignment.config.load import load
    from alignment.preflight.plan.gpus import gpu
    from evals.words import named
    from reward_models.base import RewardModel

    words = [word for word in words if not (word.startswith("[") and word.endswith("]"))]  # what may be left out
    args: argparse.Namespace = cli._parse(words)
    given = vars(args)
    overrides = given.get("overrides", [])
    if "gpu" in given and not args.gpu.isupper():
        gpu(args.gpu)
    if words[:2] == ["rewards", "bench"]:
        for name, fields in named(overrides).values():
            build.of_kind(RewardModel, name, fields)
    elif "name" in given and not args.name.isupper():
        build.of_kind(RewardModel, args.name, overrides)
    elif given.get("config") is not None and not PLACEHOLDER.fullmatch(args.config) and words[0] != "rewards":
        load(args.config, overrides)
