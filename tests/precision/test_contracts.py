"""Calls of packages that need a GPU, held against the packages' sources; and our layer, with a stand-in for theirs.

A renamed argument fails here, on a CPU. The calls are read from our source, so none is forgotten; the signatures from
the package if it is installed, else from what pip gets. Neither is imported.
"""

import ast
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, Signature
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yxanul
from yxanul.config import Recipe
from yxanul.model import transformer
from yxanul.model.attention import sdpa

OURS = Path(yxanul.__file__).parent
BACKEND = "precision/transformer_engine.py"
PACKAGES = {
    "transformer_engine": "transformer-engine==2.20.*",
    "flash_attn": "flash-attn==2.8.*",
    "liger_kernel": "liger-kernel>=0.8.5",
    "torchao": "torchao==0.18.*",
    "torch.nn.attention.varlen": "torch",  # always installed, and its arguments differ between versions
}
OBJECTS = {BACKEND: {"linear": "transformer_engine.pytorch.Linear.forward"}}
"""What is called by a name that is not imported, by file."""
RECIPES = {
    "delayed": "DelayedScaling",
    "tensorwise": "Float8CurrentScaling",
    "blockwise": "Float8BlockScaling",
    "mxfp8": "MXFP8BlockScaling",
}


class Call(NamedTuple):
    where: str
    name: str
    positional: int
    keywords: list[str]


def package_of(name: str) -> str | None:
    return next((package for package in PACKAGES if name.startswith(f"{package}.")), None)


def calls_in(path: Path) -> list[Call]:
    """The calls of the packages in a file of ours, by the called thing's full name; `**` is left out."""
    nodes, file = list(ast.walk(ast.parse(path.read_text("utf-8")))), path.relative_to(OURS).as_posix()
    names, found = dict(OBJECTS.get(file, {})), []
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {each.asname or each.name: origin + each.name for each in node.names}
    for node in (node for node in nodes if isinstance(node, ast.Call)):
        first, dot, rest = ast.unparse(node.func).partition(".")
        name = names.get(first, first) + dot + rest
        if package_of(name):
            keywords = [each.arg for each in node.keywords if each.arg]
            found.append(Call(f"{file}:{node.lineno}", name, len(node.args), keywords))
    return found


CALLS = [call for path in sorted(OURS.rglob("*.py")) for call in calls_in(path)]


def definition(root: Path, parts: list[str]) -> ast.ClassDef | ast.FunctionDef | None:
    """The class or function of a full name, followed through the imports on the way."""
    for end in range(len(parts), 0, -1):
        base = root.joinpath(*parts[:end])
        path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if path.is_file():
            break
    node, package = ast.parse(path.read_text("utf-8")), parts[:end] if base.is_dir() else parts[: end - 1]
    for at, name in enumerate(parts[end:], end + 1):
        for each in ast.walk(node):
            if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name:
                node = each
                break
            if isinstance(each, ast.ImportFrom):
                original = next((alias.name for alias in each.names if name == (alias.asname or alias.name)), None)
                if original:
                    above = package[: len(package) + 1 - each.level] if each.level else []
                    module = each.module.split(".") if each.module else []
                    return definition(root, [*above, *module, original, *parts[at:]])
        else:
            return None
    return node


def signature(node: ast.ClassDef | ast.FunctionDef) -> Signature:
    """What it takes; of a class without `__init__`, a dataclass, its fields by name."""
    by_name, missing = Parameter.KEYWORD_ONLY, Parameter.empty
    if isinstance(node, ast.ClassDef):
        made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        if not made:
            fields = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]
            return Signature([Parameter(field, by_name, default=None) for field in fields])
        (node,) = made
    required = len(node.args.args) - len(node.args.defaults)
    found = [
        Parameter(each.arg, Parameter.POSITIONAL_OR_KEYWORD, default=missing if index < required else None)
        for index, each in enumerate(node.args.args)
        if each.arg not in ("self", "cls")
    ]
    for each, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        found.append(Parameter(each.arg, by_name, default=None if default else missing))
    return Signature(found)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """The folder that holds the source of a package: `source("flash_attn")`."""

    @functools.cache
    def find(package: str) -> Path | str:
        spec = importlib.util.find_spec(package.partition(".")[0])
        if spec and spec.origin:
            return Path(spec.origin).parents[1]
        folder = tmp_path_factory.mktemp(package)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", "--retries=0"]
        pip += ["--timeout=10", "--no-build-isolation", PACKAGES[package]]
        # flash-attn has no wheel, and pip asks its setup.py for its name, which asks for CUDA but for this.
        environment = os.environ | {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
        try:
            subprocess.run(pip, check=True, capture_output=True, text=True, timeout=120, env=environment)
        except subprocess.TimeoutExpired:
            return "pip took too long"
        except subprocess.CalledProcessError as error:
            return (re.findall(r"(?:\w+Error|ERROR): .+", error.stderr) or ["pip failed"])[0]
        (archive,) = folder.iterdir()
        shutil.unpack_archive(archive, folder, "zip" if archive.suffix == ".whl" else "gztar")
        return next(folder.rglob(f"{package}/__init__.py")).parents[1]

    def get(package: str) -> Path:
        found = find(package)
        return found if isinstance(found, Path) else pytest.skip(f"no source of {package} to be had: {found}")

    return get


def test_calls_are_found():
    """So that the test below is not empty without anybody noticing."""
    found = {call.name for call in CALLS}
    assert {package_of(name) for name in found} >= PACKAGES.keys() - {"torchao"}
    assert found >= {"transformer_engine.pytorch.Linear", "transformer_engine.pytorch.Linear.forward"}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.where}-{call.name}")
def test_arguments_that_we_pass_exist(call, source):
    found = definition(source(package_of(call.name)), call.name.split("."))
    assert found, f"{call.name} is gone"
    signature(found).bind(*range(call.positional), **dict.fromkeys(call.keywords))


@pytest.mark.parametrize("recipe", ["Float8CurrentScaling", "Float8BlockScaling"])
def test_attributes_of_recipes_that_we_set_exist(recipe, source):
    found = definition(source("transformer_engine"), ["transformer_engine", "common", "recipe", recipe])
    there = {each.targets[0].id for each in found.body if isinstance(each, ast.Assign)}
    ours = re.findall(r"found\.(\w+) =", (OURS / BACKEND).read_text("utf-8"))
    assert ours and there.issuperset(ours)


@pytest.fixture
def backend(monkeypatch):
    """Our module over a stand-in for Transformer Engine, which multiplies in the input's dtype.

    Its `seen` is (tokens, whether FP8 was on, is_first_microbatch) of each forward of a layer, and `build(dtype)` makes
    a layer of 16 inputs and 48 outputs with weights.
    """
    seen, fp8 = [], [False]

    class Linear(nn.Module):
        def __init__(self, in_features, out_features, bias, params_dtype, device):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))

        def get_extra_state(self):
            return torch.zeros(1)

        def forward(self, inp, is_first_microbatch=None):
            seen.append((len(inp), fp8[-1], is_first_microbatch))
            return F.linear(inp, self.weight.to(inp.dtype))

    @contextmanager
    def autocast(enabled, recipe):
        fp8.append(enabled)
        try:
            yield
        finally:
            fp8.pop()

    classes = {name: type(name, (), {}) for name in ("Recipe", *RECIPES.values())}
    recipes = types.SimpleNamespace(QParams=dict, **classes)
    manager = types.SimpleNamespace(is_fp8_enabled=lambda: fp8[-1])
    modules = {"": {}, ".common": {"recipe": recipes}, ".pytorch": {"Linear": Linear, "autocast": autocast}}
    for name, content in (modules | {".pytorch.quantization": {"FP8GlobalStateManager": manager}}).items():
        module = types.ModuleType(f"transformer_engine{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("backend", OURS / BACKEND)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)

    def build(dtype=torch.float32):
        layer = found.te_linear(16, 48, dtype=dtype)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        layer.context = partial(found.te_context, Recipe.tensorwise, True)
        return layer

    found.seen, found.build = seen, build
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "rows"), [(1, 32), (37, 64), (64, 64)])
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_tokens_are_padded_and_gradients_are_float32(backend, tokens, rows, dtype):
    layer, x = backend.build(dtype), torch.randn(tokens, 16).to(dtype).requires_grad_()
    weight, y = layer.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    found, expected = layer(x), F.linear(y, weight.to(dtype))
    for out in (found, expected):
        (out**2).sum().backward()
    assert backend.seen == [(rows, True, None)]
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        (found, x.grad, layer.weight.grad), (expected, y.grad, weight.grad), rtol=2e-2, atol=1e-2
    )


def test_nothing_but_the_weight_is_kept(backend):
    layer = backend.build()
    assert list(layer.state_dict()) == [name for name, _ in layer.named_parameters()] == ["weight"]
    assert (layer.weight.dtype, layer.weight.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("replace", [False, True])
def test_the_weight_is_shared_after_it_moved_or_was_replaced(backend, monkeypatch, replace):
    layer, x = backend.build(), torch.randn(32, 16)
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: replace)
    layer.to(torch.bfloat16).to(torch.float32)
    layer.load_state_dict({"weight": torch.ones(48, 16)}, assign=replace)
    out = layer(x)
    out.sum().backward()
    torch.testing.assert_close((out, layer.weight.grad), (F.linear(x, torch.ones(48, 16)), x.sum(0).expand(48, 16)))


@pytest.mark.parametrize("change", [{"active": False}, {"roles": frozenset()}])
def test_without_fp8_it_is_a_plain_layer(backend, change):
    layer, x = backend.build(torch.bfloat16), torch.randn(5, 16)
    vars(layer).update(change)
    assert torch.equal(layer(x), F.linear(x.bfloat16(), layer.weight.bfloat16())) and not backend.seen


def test_a_kept_weight_is_used_in_training_alone(backend):
    layer = backend.build()
    layer.first_micro_batch = False
    layer(torch.randn(32, 16))
    with torch.no_grad():
        layer(torch.randn(32, 16))
    assert [first for _, _, first in backend.seen] == [False, None]


def test_all_of_a_step_runs_in_fp8(backend, model_config, monkeypatch):
    """Also what the backward computes again, outside of the model's forward."""
    monkeypatch.setattr(transformer, "memory_is_dear", lambda x: True)
    linear = partial(backend.te_linear, dtype=torch.float32)
    model = transformer.Transformer(model_config(num_layers=1), 61, linear, torch.float32)
    model.initialize(0.02, torch.Generator().manual_seed(0))
    packed = transformer.Packed(torch.arange(32), torch.arange(32), sdpa([0], 32, 32))
    with pytest.raises(RuntimeError, match="within"):
        model(packed, packed.tokens)
    context = Mock(side_effect=partial(backend.te_context, Recipe.tensorwise, True))
    backend.within(model, context)
    model(packed, packed.tokens).backward()
    model.token_losses(packed, packed.tokens)
    assert [fp8 for _, fp8, _ in backend.seen] == [True] * (4 + 1 + 4)
    assert context.call_count == 3


@pytest.mark.parametrize(("recipe", "theirs"), list(RECIPES.items()))
def test_recipes(backend, recipe, theirs):
    found = backend.te_recipe(Recipe(recipe), power_of_two=True)
    assert type(found).__name__ == theirs
    scales = [value for name, value in vars(found).items() if name.startswith("fp8_quant")]
    assert scales == ([{"power_2_scale": True}] * 3 if recipe in ("tensorwise", "blockwise") else [])
