"""Decisions about the shape of the code, each kept by a rule: who imports whom, sizes, names, forbidden constructs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.errors_caught import errors_in
from tests.support.floors import FLOORS
from tests.support.source_code import (
    Function,
    at_top,
    everywhere,
    files,
    holds_a_type,
    is_a_type,
    module,
    named,
    tree,
    within,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("samplers", "reward_models", "alignment", "evals")
ALLOWED = {  # who may import whom, by package
    "samplers": {"samplers"},
    "reward_models": {"reward_models"},
    "alignment": {"alignment", "samplers", "reward_models"},
    "evals": {"evals", "alignment", "samplers", "reward_models"},
}
# What evaluation may not know of alignment: how to train.
TRAINING = {
    "alignment.credit", "alignment.objectives", "alignment.sources", "alignment.training", "alignment.train",
    "alignment.preflight", "alignment.cli",
}  # fmt: skip
# Below these folders a file that holds a type may import `base` and what the types share, never the file of another.
INDEPENDENT = (
    "alignment/credit/advantages",
    "alignment/credit/backbones",
    "alignment/credit/structures",
    "alignment/features",
    "alignment/objectives",
    "alignment/sources",
    "samplers/dynamics",
    "samplers/windows",
    "reward_models",
)
DISTRIBUTED = {
    "alignment/training/runtime/runtime.py",
    "alignment/training/runtime/mesh.py",
    "alignment/training/runtime/sharded.py",
    "alignment/training/runtime/team.py",
    "alignment/world.py",
    "alignment/checkpoints/checkpoint.py",
    "alignment/checkpoints/parts.py",
    "alignment/train.py",
}
PRINTERS = {"alignment/reports/terminal.py", "alignment/reports/console.py"}
EXTRAS = {
    "xformers", "hpsv2", "ImageReward", "open_clip", "wandb", "trackio", "tensorboard", "torch.utils.tensorboard",
    "optuna", "pyarrow", "torchao", "bitsandbytes", "fastapi", "uvicorn", "rapidocr", "onnxruntime",
}  # fmt: skip

MODULES = 15
FILE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 7
ERRORS = 3  # kinds of built-in errors that one handler catches
NAMELESS = {"utils", "common", "helpers", "misc"}

USERS = "the code is the user's and may raise anything; it is raised again, naming what was run"
DIFFUSERS = "stands in for a method of diffusers, whose signature differs from class to class"
# What is excused from a rule, as the test prints it, with the reason. The list may only shrink: raise no number here,
# and an entry that is not needed any more fails.
EXCUSED = {
    "alignment/policy/embeddings.py: Embeddings.__call__ takes **named": DIFFUSERS,
    "reward_models/errors.py: users_code catches everything": USERS,
    "samplers/stand_in/scheduler.py: _StandIn._conducted_step takes **named": DIFFUSERS,
    "samplers/stand_in/scheduler.py: stand_in_for.step takes **named": DIFFUSERS,
    "samplers/stand_in/routing.py: _Routed._router.call takes **named": DIFFUSERS,
    "samplers/stand_in/routing.py: _twin takes **named": DIFFUSERS,
}
EXCUSED_AT_MOST = 6


def packages_import_only_what_is_below_them(root: Path) -> Iterator[str]:
    ours = {*PACKAGES, "tests", "examples"}
    for package in PACKAGES:
        for path in files(root, package):
            # The command line starts everything, evaluation too.
            above = ours - ALLOWED[package] - ({"evals"} if within(module(root, path), {"alignment.cli"}) else set())
            for other in sorted(everywhere(path)):
                if within(other, above):
                    yield f"{path.relative_to(root)}: imports {other}"


def evaluation_knows_nothing_of_training(root: Path) -> Iterator[str]:
    for path in files(root, "evals"):
        for other in sorted(everywhere(path)):
            if within(other, TRAINING):
                yield f"{path.relative_to(root)}: imports {other}"


def rooms_import_what_is_below_them(root: Path) -> Iterator[str]:
    floors = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    modules = {module(root, path) for path in files(root, *PACKAGES)}

    def room(dotted: str) -> str:
        parts = dotted.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((name for name in names if name in floors), "")

    for path in files(root, *PACKAGES):
        own = room(module(root, path))
        if not own:
            yield f"{path.relative_to(root)}: stands in no room of the table"
            continue
        for other in sorted(everywhere(path) & modules):
            there = room(other)
            if there != own and (not there or floors[there] >= floors[own]):
                yield f"{path.relative_to(root)}: imports {other}, which does not stand below it"


def siblings_do_not_import_each_other(root: Path) -> Iterator[str]:
    for folder in INDEPENDENT:
        siblings = {path for path in files(root, folder) if holds_a_type(path)}
        for path in sorted(siblings):
            for other in sorted(siblings - {path}):
                if module(root, other) in everywhere(path):
                    yield f"{path.relative_to(root)}: imports its sibling {module(root, other)}"


def imports_make_no_circle(root: Path) -> Iterator[str]:
    """Count every import: a circle hides in functions and behind `TYPE_CHECKING`."""
    paths = {module(root, path): path for path in files(root, *PACKAGES)}
    graph = {dotted: everywhere(path) & paths.keys() - {dotted} for dotted, path in paths.items()}
    before = -1
    while before != len(graph):  # take away, again and again, what imports nothing that is left
        before = len(graph)
        graph = {dotted: below & graph.keys() for dotted, below in graph.items() if below & graph.keys()}
    if graph:
        yield f"these modules import each other in a circle, or one that does: {sorted(graph)}"


def processes_meet_only_at_the_edge(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES):
        if path.relative_to(root).as_posix() in DISTRIBUTED:
            continue
        spelt = {ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        for other in sorted(everywhere(path) | spelt):
            if within(other, {"accelerate", "torch.distributed"}):
                yield f"{path.relative_to(root)}: uses {other}"


def triton_stays_beside_its_reference(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES):
        kernel = re.fullmatch(r"_(\w+)_triton", path.stem)
        if kernel is None and any(within(other, {"triton"}) for other in everywhere(path)):
            yield f"{path.relative_to(root)}: imports triton"
        if kernel is not None and not path.with_name(f"{kernel[1]}.py").exists():
            yield f"{path.relative_to(root)}: has no torch reference beside it"


def extras_are_imported_where_they_are_used(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES):
        for other in sorted(at_top(path)):
            if within(other, EXTRAS):
                yield f"{path.relative_to(root)}: imports {other} at the top"


def one_place_prints(root: Path) -> Iterator[str]:
    """Text of others is made visible where it is printed, so that is done in two files only."""
    for path in files(root, *PACKAGES):
        if path.relative_to(root).as_posix() in PRINTERS:
            continue
        calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        for call in sorted(calls & {"print", "sys.stdout.write", "sys.stderr.write"}):
            yield f"{path.relative_to(root)}: calls {call}"
        if within("rich.console.Console", everywhere(path)):
            yield f"{path.relative_to(root)}: imports rich's Console"


def no_test_looks_at_the_clock(root: Path) -> Iterator[str]:
    """A busy machine must fail no test: none asks how long something took, nor sets the time for an example."""
    for path in files(root, "tests"):
        for node in ast.walk(tree(path)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr=called)) if called != "sleep":
                    yield f"{path.relative_to(root)}: calls time.{called}"
                case ast.Call(func=ast.Name(id="settings")) if any(word.arg == "deadline" for word in node.keywords):
                    yield f"{path.relative_to(root)}: sets a deadline for examples, which tests/conftest.py takes away"
                case _:
                    pass


def files_and_functions_are_small(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES, "examples", "tests"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            yield f"{path.relative_to(root)}: has more than {FILE_LINES} lines"
        for name, node in named(tree(path)):
            if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES:
                yield f"{path.relative_to(root)}: {name} has more than {FUNCTION_LINES} lines"


def signatures_are_short(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES, "examples"):
        for name, node in named(tree(path)):
            if isinstance(node, Function) and not name.split(".")[-1].startswith("_"):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if sum(argument.arg not in {"self", "cls"} for argument in arguments) > PARAMETERS:
                    yield f"{path.relative_to(root)}: {name} takes more than {PARAMETERS} parameters"


def folders_hold_few_modules(root: Path) -> Iterator[str]:
    for folder in sorted({path.parent for path in files(root, *PACKAGES)}):
        if sum(path.stem != "__init__" for path in folder.glob("*.py")) > MODULES:
            yield f"{folder.relative_to(root)}: has more than {MODULES} modules"


def private_modules_stay_at_home(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES, "examples"):
        home = module(root, path.with_name("__init__.py"))
        for other in sorted(everywhere(path)):
            parent, _, leaf = other.rpartition(".")
            private = (root / f"{other.replace('.', '/')}.py").is_file() and re.match(r"_[^_]", leaf)
            if private and parent != home:
                yield f"{path.relative_to(root)}: imports {other}, which is private to its folder"


def every_file_says_what_it_is(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES, "examples", "tests"):
        if path.stem in NAMELESS:
            yield f"{path.relative_to(root)}: the name says nothing"


def a_class_name_means_one_thing(root: Path) -> Iterator[str]:
    """Refuse a public class name that occurs twice; types are named together with their kind, so those may."""
    homes: dict[str, list[str]] = {}
    for path in files(root, *PACKAGES):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and node.name[0] != "_" and not is_a_type(path, node):
                homes.setdefault(node.name, []).append(path.relative_to(root).as_posix())
    for name, places in sorted(homes.items()):
        if len(places) > 1:
            yield f"{name} is a class in {' and in '.join(places)}"


def nothing_is_hidden(root: Path) -> Iterator[str]:
    """Refuse the broad except, getattr with a default and `**kwargs` in a signature."""
    for path in files(root, *PACKAGES, "examples"):
        for name, node in named(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(kind is None or ast.unparse(kind) in {"Exception", "BaseException"} for kind in caught):
                    yield f"{path.relative_to(root)}: {name} catches everything"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
                yield f"{path.relative_to(root)}: {name} has {ast.unparse(node)}"
            if isinstance(node, ast.arguments) and node.kwarg is not None:
                yield f"{path.relative_to(root)}: {name} takes **{node.kwarg.arg}"


def what_can_be_installed_is_tested(root: Path) -> Iterator[str]:
    """Refuse tests that are left out where a package is missing: the environment of the tests has them all."""
    for path in files(root, "tests"):
        for name, node in named(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr == "importorskip":
                yield f"{path.relative_to(root)}: {name} is left out where a package is missing"


def tuples_of_errors_are_short(root: Path) -> Iterator[str]:
    """Refuse to catch many kinds of built-in errors: our own bugs are among them."""
    paths = files(root, *PACKAGES, "examples")
    held = {
        target.id: node.value
        for path in paths
        for node in tree(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Tuple | ast.BinOp)
    }
    for path in paths:
        for name, node in named(tree(path)):
            if isinstance(node, ast.ExceptHandler) and len(caught := errors_in(node.type, held)) > ERRORS:
                yield f"{path.relative_to(root)}: {name} catches {', '.join(caught)}"


def what_is_public_is_documented(root: Path) -> Iterator[str]:
    for path in files(root, *PACKAGES):
        body = tree(path)
        if body.body and ast.get_docstring(body) is None:
            yield f"{path.relative_to(root)}: the module has no docstring"
        for node in body.body:
            if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_" and ast.get_docstring(node) is None:
                yield f"{path.relative_to(root)}: {node.name} has no docstring"


RULES: tuple[Callable[[Path], Iterator[str]], ...] = (
    packages_import_only_what_is_below_them,
    evaluation_knows_nothing_of_training,
    rooms_import_what_is_below_them,
    siblings_do_not_import_each_other,
    imports_make_no_circle,
    processes_meet_only_at_the_edge,
    triton_stays_beside_its_reference,
    extras_are_imported_where_they_are_used,
    one_place_prints,
    no_test_looks_at_the_clock,
    files_and_functions_are_small,
    signatures_are_short,
    folders_hold_few_modules,
    private_modules_stay_at_home,
    every_file_says_what_it_is,
    a_class_name_means_one_thing,
    nothing_is_hidden,
    what_can_be_installed_is_tested,
    tuples_of_errors_are_short,
    what_is_public_is_documented,
)


@cache
def offences(rule: Callable[[Path], Iterator[str]]) -> list[str]:
    return list(rule(ROOT))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_is_kept(rule: Callable[[Path], Iterator[str]]) -> None:
    broken = [offence for offence in offences(rule) if offence not in EXCUSED]
    assert not broken, "\n" + "\n".join(broken)


def test_excuses_only_shrink() -> None:
    needed = {offence for rule in RULES for offence in offences(rule)}
    assert not EXCUSED.keys() - needed, "not needed any more: take it out"
    assert len(EXCUSED) <= EXCUSED_AT_MOST


BAD = {
    "alignment/data/records.py": "def f():\n    from alignment.data import prompts\n",
    "alignment/data/prompts.py": "import alignment.data.records\nimport alignment.sources._secret\n",
    "alignment/sources/_secret.py": "",
    **{f"evals/part_{number}.py": "" for number in range(16)},
    "tests/test_some.py": "import pytest\nyaml = pytest.importorskip('yaml')\n",
    "samplers/utils.py": "import alignment.data.batches\nimport triton\n",
    "samplers/dynamics/ode.py": "from samplers.dynamics import flow\n@dataclass\nclass ODE(Rule):\n    x: int\n",
    "samplers/dynamics/flow.py": "from samplers.dynamics.ode import x\n@dataclass\nclass Flow(Rule):\n    y: int\n",
    "alignment/training/loop.py": "import torch\ndef f(a, b, c, d, e, f, g, h):\n    torch.distributed.barrier()\n"
    + "    a\n" * 60,
    "alignment/sources/mine.py": "from alignment.training import loop\nimport wandb\n",
    "tests/test_it.py": "import time\nassert time.monotonic() < 1\n",
    "evals/run.py": "from alignment.training import loop\ndef f(**more):\n    print(getattr(f, 'x', 1))\n",
    "evals/one.py": "class Verdict:\n    pass\n",
    "samplers/one.py": "class Verdict:\n    pass\n",
    "evals/many.py": "MANY = (OSError, KeyError)\ntry:\n    f()\nexcept (*MANY, TypeError, ValueError):\n    pass\n",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_bites(rule: Callable[[Path], Iterator[str]], tmp_path: Path) -> None:
    for name, text in BAD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert list(rule(tmp_path))


def test_no_file_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    folders = "|".join(("work", "root", "home", "tmp", "Users"))  # apart, so that this file names none itself
    somewhere = re.compile(rf"(?<![\w.~:/}}])/(?:{folders})/[\w.]")
    texts = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".sh", ".html", ".jinja", ".json", ".jsonl", ".txt"}
    found = [
        f"{tracked}: {line.strip()}"
        for tracked in listed.stdout.split("\0")
        if Path(tracked).suffix in texts and (ROOT / tracked).exists()
        for line in (ROOT / tracked).read_text(encoding="utf-8").splitlines()
        if somewhere.search(line)
    ]
    assert not found, "these lines name a place on one machine:\n" + "\n".join(found)


def test_the_type_checker_looks_at_what_exists() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"]
    missing = [entry for entry in settings["include"] if not (ROOT / entry).exists()]
    assert not missing, f"pyproject.toml asks pyright to check what is not there: {missing}"
    assert set(PACKAGES) <= set(settings["include"])
