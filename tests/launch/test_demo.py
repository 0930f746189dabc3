"""The demonstration at its smallest: every stage is real, only shorter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["updates=60", "episodes=2", "exploration_episodes=1", "episode_seconds=1.5", "finetune_updates=30"]


def test_the_demonstration_runs_from_pretraining_to_the_policy_sent_back(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "demo.py"), "--run", str(tmp_path / "demo"), *SHORT]
    environment = os.environ | {"MUJOCO_GL": "disable"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "demo" / "report.json").read_text())

    counts = report["transitions"]
    assert counts["logged"] == counts["received"] == 3 * 75
    assert counts["used"] + counts["excluded"] == counts["received"]
    assert len(report["return_in_simulation"]["returns"]) == 20
    assert [len(report["return_on_robot"][when]["returns"]) for when in ("before", "after")] == [2, 2]
    assert all(Path(run).is_dir() for run in report["runs"].values())
    assert abs(report["loop"]["after"]["rate_hz"] - 50.0) < 1.0
    assert report["export"]["max_action_error"] < 1e-5
    assert report["sent_back"] == report["verdict"]["passed"]
    assert report["policy_changed"] is False  # so few updates leave the policy alone

    picture = matplotlib.image.imread(tmp_path / "demo" / "report.png")
    assert picture.shape[0] > 500
    assert np.ptp(picture[..., :3]) > 0.5
    assert not (tmp_path / "demo" / "robot-port").is_symlink()


def test_a_folder_that_is_no_earlier_demonstration_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    command = [sys.executable, str(ROOT / "launch" / "demo.py"), "--run", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "not an earlier demo" in result.stderr
    assert (tmp_path / "precious").read_text() == "data"
