"""What may import what: the layers hold, a robot computer needs neither torch nor mujoco, and nothing unpickles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api

ROOT = Path(__file__).parents[1]
PACKAGES = ("dpg_robot", "sim", "hw_drivers", "launch")
HEAVY = ("torch", "mujoco", "dm_control", "tensorboard", "safetensors", "matplotlib", "scipy")


def modules(package):
    """Names of all modules of a package, read from its files."""
    files = (ROOT / package.replace(".", "/")).rglob("*.py")
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files)
    return sorted(names)


def sources():
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def test_imports_run_downwards_only():
    contracts = api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    assert {contract["type"] for contract in contracts} == {"layers", "forbidden"}
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("package", ["dpg_robot.deploy", "dpg_robot.data", "hw_drivers"])
def test_the_robot_side_imports_without_what_only_training_needs(package):
    base = ["dpg_robot.contract", "dpg_robot.config", "dpg_robot.policy_file", "dpg_robot.observation", "dpg_robot.files"]
    names = [*base, *modules(package)]
    assert len(names) > len(base) + 1
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_importing_the_simulation_alone_needs_no_torch():
    # Stable-Baselines3, which its adapter is for, brings torch itself; benchmarks and data sets of policies, and simulations in
    # which policies are judged, are about learning
    with_torch = ("sim.sb3_env", "sim.dataset_kinds", "sim.benchmarks", "sim.fitted_simulation", "sim.robot_fitting")
    names = [name for name in modules("sim") if not name.startswith(with_torch)]
    assert len(names) > 30
    program = f"import sys\nfor name in {names!r}: __import__(name)\nprint('torch' in sys.modules, 'mujoco' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.stdout.strip() == "False True", result.stderr


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_uses(tree):
    """Yield lines that import a pickling library, or call torch.load, torch.save or numpy.load with pickles allowed."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if {name.partition(".")[0] for name in names} & UNSAFE_MODULES:
            yield node.lineno
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            allows = any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in node.keywords)
            if called in ("torch.load", "torch.save", "eval", "exec", "yaml.load", "yaml.unsafe_load") or allows:
                yield node.lineno


def test_nothing_in_the_packages_unpickles():
    assert len(sources()) > 40
    found = [f"{file.relative_to(ROOT)}:{line}" for file in sources() for line in unsafe_uses(ast.parse(file.read_text()))]
    assert found == []


@pytest.mark.parametrize(
    "text", ["import pickle", "from pickle import loads", "torch.load('x')", "np.load(f, allow_pickle=True)", "yaml.load(t)"]
)
def test_the_search_for_pickles_would_find_them(text):
    assert list(unsafe_uses(ast.parse(text))) == [1]


def test_no_module_does_work_when_it_is_imported():
    """Top-level statements only define: no calls on their own, no loops, no files opened."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    found = []
    for file in sources():
        if file.name.endswith("_pb2.py") or file.relative_to(ROOT).as_posix() == "sim/__init__.py":  # registers with Gymnasium
            continue
        for node in ast.parse(file.read_text()).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
            if not (isinstance(node, allowed) or docstring or guard):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []
