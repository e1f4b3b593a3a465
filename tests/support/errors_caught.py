"""Which built-in errors a handler catches."""

from __future__ import annotations

import ast
import builtins


def errors_in(node: ast.expr | None, held: dict[str, ast.expr], seen: frozenset[str] = frozenset()) -> list[str]:
    """Return the built-in exceptions among what is caught, those of tuples that have a name too."""
    match node:
        case ast.Tuple(elts=parts):
            return [name for part in parts for name in errors_in(part, held, seen)]
        case ast.Starred(value=part):
            return errors_in(part, held, seen)
        case ast.BinOp():
            return errors_in(node.left, held, seen) + errors_in(node.right, held, seen)
        case ast.Name(id=name) if name in held and name not in seen:
            return errors_in(held[name], held, seen | {name})
        case ast.Name(id=name):
            kind = vars(builtins).get(name)
            return [name] if isinstance(kind, type) and issubclass(kind, BaseException) else []
        case _:
            return []
