"""Reading source code: its files, its imports, its names."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def files(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Return dotted names: `from a.b import c` gives a.b and a.b.c, for c may be a module."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@cache
def everywhere(path: Path) -> set[str]:
    return imported(ast.walk(tree(path)))


def at_top(path: Path) -> set[str]:
    """Return what is imported along with the module: nothing inside functions or `if TYPE_CHECKING`."""

    def nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in body:
            yield node
            if isinstance(node, ast.ClassDef | ast.Try):
                yield from nodes(node.body)
            if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                yield from nodes([*node.body, *node.orelse])

    return imported(nodes(tree(path).body))


def within(dotted: str, packages: set[str]) -> bool:
    return any(dotted == package or dotted.startswith(f"{package}.") for package in packages)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield every node below `node` with the dotted name of the class and function it stands in."""
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}.{child.name}".strip(".") if isinstance(child, Function | ast.ClassDef) else prefix
        yield name, child
        yield from named(child, name)


def holds_a_type(path: Path) -> bool:
    """Return whether a config's `type:` may name the file: it holds a type of its name."""
    return any(is_a_type(path, node) for node in tree(path).body)


def is_a_type(path: Path, node: ast.stmt) -> bool:
    """Return whether a config's `type:` may name this node: a dataclass that inherits, called like its file."""
    if not isinstance(node, ast.ClassDef) or not (node.bases and node.decorator_list):
        return False
    return path.stem[0] != "_" and node.name.lower() == path.stem.replace("_", "")
