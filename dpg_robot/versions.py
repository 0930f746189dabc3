"""Which versions of packages are installed, for what is recorded beside results."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for those that are not installed."""
    return {"python": platform.python_version(), **{package: installed_version(package) for package in packages}}
