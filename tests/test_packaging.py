"""What is declared is what is there: packages, data files, requirements and pins."""

import ast
import configparser
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

ABOUT_AN_EXTRA = ("transformer_engine", "harness")


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    assert parser.read(ROOT / "setup.cfg")
    return parser


def listed(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def requirements(setup_cfg, *extras: str) -> dict[str, Requirement]:
    lines = listed(setup_cfg["options"]["install_requires"])
    for extra in extras:
        lines += listed(setup_cfg["options.extras_require"][extra])
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pins() -> dict[str, Requirement]:
    lines = [line.split("#")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line.strip()}


def modules() -> list[Path]:
    return [path for path in (ROOT / "yxanul").rglob("*.py") if "__pycache__" not in path.parts]


def test_every_package_is_listed(setup_cfg):
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in modules()}
    packages = listed(setup_cfg["options"]["packages"])
    assert len(packages) == len(set(packages))
    assert set(packages) == on_disk | {"yxanul.conf"}


def test_every_package_has_an_init():
    assert [path.parent for path in modules() if not (path.parent / "__init__.py").is_file()] == []


def test_a_build_holds_every_module_and_every_value(tmp_path):
    """The real build: what conf/ and yxanul/ hold is what a wheel would hold."""
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    for name in ("yxanul", "conf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "README.md").touch()
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build", "--build-lib", "../built"]
    done = subprocess.run(build, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(tmp_path / "built")) for path in (tmp_path / "built").rglob("*") if path.is_file()}
    code = {str(path.relative_to(ROOT)) for path in modules()}
    values = {str("yxanul" / path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*") if path.is_file()}
    pages = {str(path.relative_to(ROOT)) for name in ("*.css", "*.js") for path in (ROOT / "yxanul").rglob(name)}
    assert built == code | values | pages and pages


def test_every_requirement_and_test_tool_is_pinned_within_its_bounds(setup_cfg):
    pinned = pins()
    for name, requirement in requirements(setup_cfg, "test").items():
        assert name in pinned, f"constraints.txt lacks {name}"
        (pin,) = pinned[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(Version(pin.version)), name


def test_a_pin_is_of_something_that_is_required(setup_cfg):
    assert pins().keys() <= requirements(setup_cfg, "test", "gpu").keys()


def test_every_import_is_a_requirement(setup_cfg):
    """No module imports what an installation without extras would not bring; a function may import theirs.

    So may the modules that are wholly about one of these packages, and are imported by functions alone.
    """
    distributions = packages_distributions()
    undeclared = set()
    for path in modules():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            always = node in tree.body and path.stem not in ABOUT_AN_EXTRA
            declared = requirements(setup_cfg, *(() if always else ("gpu", "optuna", "export", "eval"))).keys()
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"yxanul"}:
                owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
                if not owners & declared:
                    undeclared.add(f"{name} in {path.relative_to(ROOT)}")
    assert undeclared == set()
