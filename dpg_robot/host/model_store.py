"""The model store: every candidate with its verdict is kept, and the current policy changes in one step.

Layout: ``versions/<number>/`` holds ``policy.onnx``, its export report and ``verdict.json``; ``policy.onnx`` at the top is the
policy that robots should run. It is replaced by a rename, so a robot reads the old file or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpg_robot.errors import PolicyFileError
from dpg_robot.files import new_folder, write_atomically
from dpg_robot.host.gate import Verdict
from dpg_robot.policy_file import read_policy_file


class ModelStore:
    """A folder of policies.

    Args:
        folder: where; made when it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        (self.folder / "versions").mkdir(parents=True, exist_ok=True)

    @property
    def current(self) -> Path:
        """Path of the policy that robots should run; it exists once a policy was published."""
        return self.folder / "policy.onnx"

    def versions(self) -> list[int]:
        """Return the numbers of all candidates so far, rejected ones included, in order."""
        return sorted(int(item.name) for item in (self.folder / "versions").iterdir() if item.name.isdigit())

    def add(self, write_policy: Callable[[Path], Any], verdict: Verdict, facts: dict[str, Any]) -> Path:
        """Keep a candidate, and make it the current policy if its verdict allows.

        Args:
            write_policy: writes ``policy.onnx`` to the given path.
            verdict: the gate's verdict.
            facts: JSON values to keep beside it (figures, settings, parent).

        Returns:
            The folder of the new version.
        """
        number = max(self.versions(), default=0) + 1
        folder = self.folder / "versions" / f"{number:06d}"
        with new_folder(folder) as temporary:
            write_policy(temporary / "policy.onnx")
            _, metadata = read_policy_file(temporary / "policy.onnx")
            record = {"version": number, "policy_id": metadata.policy_id, "verdict": verdict.to_dict()} | facts
            (temporary / "verdict.json").write_text(json.dumps(record, indent=1))
        if verdict.passed:
            self.publish(number)
        return folder

    def publish(self, number: int) -> None:
        """Make a version the current policy; raises PolicyFileError when there is none of that number."""
        source = self.folder / "versions" / f"{number:06d}" / "policy.onnx"
        if not source.is_file():
            raise PolicyFileError(f"the store {self.folder} has no version {number}; it has {self.versions()}")
        content, _ = read_policy_file(source)
        write_atomically(self.current, content)
