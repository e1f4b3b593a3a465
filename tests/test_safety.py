"""Nothing in the packages can run code that came in a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("alignment", "evals", "reward_models", "samplers", "examples")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "yaml.SafeLoader", "yaml.CSafeLoader"}
KEYWORDS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}


def offences(source: str) -> Iterator[str]:
    """Yield the constructs of `source` that can run what a file says."""
    tree = ast.parse(source)
    safe = SAFE_LOADERS | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in SAFE_LOADERS for base in node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in [module] if module else [alias.name for alias in node.names]:
                if name.split(".")[0] in MODULES:
                    yield f"line {node.lineno}: imports {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            loader = [*node.args[1:], *(keyword.value for keyword in node.keywords if keyword.arg == "Loader")]
            if called in CALLS and not (called == "yaml.load" and loader and ast.unparse(loader[0]) in safe):
                yield f"line {node.lineno}: calls {called}"
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is KEYWORDS.get(
                    keyword.arg or "", ...
                ):
                    yield f"line {node.lineno}: {keyword.arg}={keyword.value.value}"


# `torch.load` with weights_only=True runs nothing, and what it refuses is a pickle.UnpicklingError; exploits are tried
# on it in tests/reward_models/loading/test_weights.py.
WEIGHTS_ONLY = {"reward_models/loading/weights.py": {"imports pickle", "calls torch.load"}}


def test_no_file_is_trusted_with_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {offence}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for offence in offences(path.read_text(encoding="utf-8"))
        if offence.partition(": ")[2] not in WEIGHTS_ONLY.get(path.relative_to(ROOT).as_posix(), set())
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=True)",
        "torch.save(x, 'x')",
        "yaml.load(text)",
        "yaml.load(text, yaml.UnsafeLoader)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class L(yaml.Loader): ...\nyaml.load(text, L)",
        "eval('1')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('x', shell=True)",
    ],
)
def test_the_rule_sees(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "yaml.safe_load(text)",
        "yaml.load(text, yaml.SafeLoader)",
        "class L(yaml.SafeLoader): ...\nyaml.load(text, Loader=L)",
        "model.eval()",
        "np.load('x', allow_pickle=False)",
        "AutoModel.from_pretrained('x', trust_remote_code=False)",
    ],
)
def test_the_rule_lets_pass(source: str) -> None:
    assert not list(offences(source))
