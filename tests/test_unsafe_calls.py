"""No call in the sources can run what it reads."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RUNS_CODE = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)"
    r"|(pickle|_pickle|cloudpickle|dill|joblib|marshal|shelve)\..+"
    r"|os\.(system|popen|exec\w+|spawn\w+|posix_spawnp?)|subprocess\.(getoutput|getstatusoutput)|pty\.spawn"
    r"|runpy\.\w+|code\.\w+|hydra\.utils\.(instantiate|call|get_\w+)"
    r"|torch\.(load|jit\.load|hub\.\w+|package\.\w+)|torch\.serialization\.\w+"
    r"|torch\.distributed\.(\w+_object(_list)?|checkpoint\.FileSystemReader)"
    r"|pandas\.read_pickle|numpy\.lib\.format\.\w+"
    r"|yaml\.(load|load_all|full_load|full_load_all|unsafe_load|unsafe_load_all)"
)
"""Calls that run what they read, or can be told to."""

UNSAFE_ARGUMENTS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}
"""Arguments that must not be given any other value."""

ALLOWED = {
    # The processes of a run, which trust one another, as they execute the same program.
    ("yxanul/training/distributed.py", "torch.distributed.broadcast_object_list"),
    # A module of this package, by a name that this package gives it.
    ("yxanul/sweep/job.py", "runpy.run_module"),
    # A sampler, whose name yxanul/trust.py has seen.
    ("yxanul/sweep/search.py", "hydra.utils.instantiate"),
}


def full_name(node: ast.expr, imported: dict[str, str]) -> str:
    """The dotted name of what is called, with what it was imported from; empty for what has none."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, imported)}.{node.attr}"
    return imported.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def imports(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unsafe(source: str) -> set[str]:
    """What in a module may run code that is not its own: names of calls, and arguments."""
    tree = ast.parse(source)
    imported = imports(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            found |= {name for name in [full_name(node, imported)] if RUNS_CODE.fullmatch(name)}
        if isinstance(node, ast.Call):
            for argument in node.keywords:
                safe = UNSAFE_ARGUMENTS.get(argument.arg)
                if safe is not None and not (isinstance(argument.value, ast.Constant) and argument.value.value is safe):
                    found.add(ast.unparse(argument))
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle; pickle.load(file)", "pickle.load"),
        ("from pickle import loads as read; read(text)", "pickle.loads"),
        ("import torch; torch.load(path)", "torch.load"),
        ("import numpy as np; np.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("reader = eval\nreader(text)", "eval"),
        ("import os; os.system(line)", "os.system"),
        ("import subprocess; subprocess.run(line, shell=wanted)", "shell=wanted"),
        ("import yaml; yaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("from hydra.utils import instantiate; map(instantiate, configs)", "hydra.utils.instantiate"),
        ("model = AutoModel.from_pretrained(path, trust_remote_code=True)", "trust_remote_code=True"),
        ("import torch.distributed as dist; dist.all_gather_object(*x)", "torch.distributed.all_gather_object"),
        ("import torch.distributed.checkpoint as dcp; dcp.FileSystemReader(x)", ".FileSystemReader"),
    ],
)
def test_unsafe_calls_are_found(source, found):
    (only,) = unsafe(source)
    assert only.endswith(found)


@pytest.mark.parametrize(
    "source",
    ["import yaml; yaml.safe_load(text)", "import numpy as np; np.load(path)", "re.compile(x)", "compile: bool"],
)
def test_safe_calls_are_none(source):
    assert unsafe(source) == set()


def test_nothing_that_is_read_can_run_code():
    files = [path for folder in ("yxanul", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = {(path.relative_to(ROOT).as_posix(), name) for path in files for name in unsafe(path.read_text())}
    assert found == ALLOWED
