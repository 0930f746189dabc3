"""Small policies and a robot that exists only in this process, for the tests of the robot side."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    """Return a module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_policy() -> ModuleType:
    """The module that writes policies small enough to compute by hand."""
    return load("tiny_policy")


@pytest.fixture(scope="session")
def fake_robot() -> ModuleType:
    """The module with a robot that notes every call and fails on demand."""
    return load("fake_robot")


@pytest.fixture
def policy_path(tiny_policy: ModuleType, tmp_path: Path) -> Path:
    """A gentle policy for the cart-pole."""
    return Path(tiny_policy.write_policy(tmp_path / "policy.onnx"))
