"""YAML text to nodes that remember where they were written, and back.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: `1e-4` is a number, `no` and `12:30` are text. What is likely
to be a slip (a key twice, a tab, a byte-order mark, a tag that builds objects) is refused with its file and line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError

from alignment.errors import ConfigError

MAX_NODES = 20_000
"""Values in one file after aliases are written out: ten aliases of ten aliases of ... end here."""
MAX_TEXT = 2**18
"""Characters of one file; the longest config that ships has less than a hundredth of it."""
MAX_DEPTH = 50
COMMAND_LINE = "command line"
"""Where a value was written that was typed there."""
TAG = "tag:yaml.org,2002:"
CORE = {
    TAG + "null": re.compile(r"(~|null|Null|NULL|)\Z"),
    TAG + "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"),
    TAG + "int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    TAG + "float": re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    TAG + "str": re.compile(r".*\Z", re.DOTALL),
}


@dataclass(frozen=True)
class Node:
    """A value as written.

    Attributes:
        value: None, bool, int, float, str, a list of nodes, or a dict from str to nodes.
        where: "configs/a.yaml:12" (of the key, for a value in a mapping), or "command line".
    """

    value: object
    where: str


class _Loader(yaml.SafeLoader):
    """Composes with the core schema only, and no deeper than a config can be."""

    yaml_implicit_resolvers: ClassVar[dict] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ComposerError(None, None, _TOO_DEEP, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Writes what both YAML versions read alike: text that either would take for something else is quoted."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        # Within any other quotes PyYAML does not read back every line break that it writes.
        plain = text == text.strip() and len(text.splitlines()) < 2
        return self.represent_scalar(TAG + "str", text, style=None if plain else '"')


Dumper.add_representer(str, Dumper.represent_text)

for _tag in ("null", "bool", "int", "float"):
    _Loader.add_implicit_resolver(TAG + _tag, CORE[TAG + _tag], None)
    Dumper.add_implicit_resolver(TAG + _tag, CORE[TAG + _tag], None)

_TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep (does an alias contain itself?)"


def dump(value: object, *, block: bool = False) -> str:
    """Return plain values as YAML text that `parse` reads back to equal ones; `block` puts each on lines of its own."""
    style = False if block else None
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, default_flow_style=style, allow_unicode=True, width=110)


def parse(text: str, file: str | None) -> Node:
    """Read one YAML document; `file` None means that it was typed on the command line.

    Raises:
        ConfigError: The text is not YAML, or holds one of the slips above.
    """

    def where(line: int) -> str:
        return f"{file}:{line + 1}" if file else COMMAND_LINE

    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"{file or 'command line'}: more than {MAX_TEXT:,} characters; a config names files of prompts and data "
            "(data.prompts) and does not hold them"
        )
    if text.startswith("\ufeff"):
        raise ConfigError(f"{where(0)}: starts with a byte-order mark; save it as UTF-8 without one")
    try:
        root = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise ConfigError(f"{where(line)}: the character {chr(error.character)!r} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{where(mark.line if mark else 0)}: {_explain(error)}") from None
    except (ValueError, OverflowError) as error:
        # PyYAML lets Python's own error through for an escape such as "\UFFFFFFFF".
        raise ConfigError(f"{file or COMMAND_LINE}: not valid YAML: {error}") from None
    if root is None:
        return Node(None, where(0))
    return _Conversion(file).node(root, root.start_mark, depth=0)


def _explain(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in (error.problem or ""):
        return "a tab where YAML wants spaces; indent and separate with spaces"
    return ", ".join(part for part in (error.context, error.problem) if part)


class _Conversion:
    """PyYAML's nodes to ours: aliases written out (and counted), scalars read, duplicate keys refused."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.count = 0

    def where(self, mark: yaml.Mark) -> str:
        return f"{self.file}:{mark.line + 1}" if self.file else COMMAND_LINE

    def node(self, node: yaml.Node, mark: yaml.Mark, depth: int) -> Node:
        where = self.where(mark)
        self.count += 1
        if self.count > MAX_NODES:
            raise ConfigError(f"{where}: more than {MAX_NODES} values once aliases are written out")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: {_TOO_DEEP}")
        if isinstance(node, yaml.ScalarNode) and node.tag in CORE:
            return Node(_scalar(node, where), where)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return Node([self.node(item, item.start_mark, depth + 1) for item in node.value], where)
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return Node(self.mapping(node, depth), where)
        tag = node.tag.replace(TAG, "!!")
        raise ConfigError(f"{where}: the tag {tag} is not allowed; a config holds plain values only")

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            written = self.node(key_node, key_node.start_mark, depth + 1)
            key, where = written.value, written.where
            if not isinstance(key, str):
                raise ConfigError(f"{where}: a key is text, this one is {show(written)}; put it in quotes")
            if key in result:
                raise ConfigError(f"{where}: the key {key!r} is given twice, first at {result[key].where}")
            result[key] = self.node(value_node, key_node.start_mark, depth + 1)
        return result


def _scalar(node: yaml.ScalarNode, where: str) -> object:
    text: str = node.value
    if "\0" in text:
        raise ConfigError(f"{where}: {text!r:.80} has a null character in it, which no name or number has")
    if not CORE[node.tag].match(text) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{where}: {text!r} is not a valid {node.tag.removeprefix(TAG)}")
    if node.tag == TAG + "null":
        return None
    if node.tag == TAG + "bool":
        return text.lower() == "true"
    if node.tag == TAG + "int":
        try:
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        except ValueError:  # Python refuses more than 4,300 digits
            raise ConfigError(f"{where}: a whole number of {len(text)} digits") from None
    if node.tag == TAG + "float":
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if math.isnan(number):
            raise ConfigError(f"{where}: .nan is not a number that a config can hold")
        return number
    return text


def plain(node: Node) -> object:
    """Return the value without its places."""
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


def show(node: Node) -> str:
    """Say what was written, in a few words."""
    value = node.value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "a mapping" if isinstance(value, dict) else f"the number {value}"
