"""Making an earlier version current again, as ``launch/host.py rollback`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dpg_robot.errors import PolicyFileError
from dpg_robot.host.model_store import ModelStore
from dpg_robot.release import SigningKey


def make_roll_back(folder: Path, key: SigningKey | None, robots: Sequence[str] = ()) -> Callable[[int, str], None]:
    """Return a function that publishes a version of a model store again, by its number and with a reason.

    It raises PolicyFileError for a version that is not there or did not pass the gate, and FileExistsError where somebody else
    has made a release at the same moment.

    Args:
        folder: the store.
        key: signs releases; None makes none.
        robots: names of the robots that releases are for; empty: all that a policy fits.

    Raises:
        PolicyFileError: there is no store.
    """
    if not (folder / "versions").is_dir():
        raise PolicyFileError(f"{folder} is no model store; launch/host.py makes one")
    store = ModelStore(folder, key, robots)

    def roll_back(number: int, reason: str) -> None:
        verdict = store.verdict(number)
        if not verdict["passed"]:
            raise PolicyFileError(
                f"version {number} did not pass the gate; if it must be, launch/host.py rollback --rejected takes it nevertheless"
            )
        store.publish(number, reason)

    return roll_back
