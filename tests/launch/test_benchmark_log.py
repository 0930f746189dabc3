"""Kills of processes that record: the benchmark finds nothing in a sound log, and would find what is wrong."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.data.benchmarks.log_kills import Kill, _judge
from dpg_robot.data.benchmarks.synthetic_robot import synthetic_contract, synthetic_records
from dpg_robot.data.log_writer import LogWriter

ROOT = Path(__file__).parents[2]
CHANNELS = 4


def run(monkeypatch, *given):
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "launch" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "log", *map(str, given)])
    module.main()


def test_kills_of_the_writer_the_robot_and_both_lose_little_and_nothing_in_between(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--kills", 3, "--quiet", "--json", tmp_path / "log.json")
    assert "0 violations" in capsys.readouterr().out
    result = json.loads((tmp_path / "log.json").read_text())
    assert [kill["victim"] for kill in result["kills"]] == ["log process", "robot", "both"]
    assert result["failed"] == []
    assert all(kill["records"] > 0 for kill in result["kills"])


def write_log(folder, count=100):
    records = synthetic_records(0, count, CHANNELS, np.random.default_rng(0))
    with LogWriter(folder, "run", synthetic_contract(CHANNELS, 100.0)) as writer:
        writer.append(records)
    return next(folder.glob("run/*.mcap")), int(records["wall_ns"][-1])


def judge(tmp_path, killed_ns):
    kill = Kill("both", 0.0, 30.0)
    _judge(kill, tmp_path / "log", killed_ns, tmp_path / "recovered")
    return kill


def test_a_whole_log_is_in_order(tmp_path):
    _, last_ns = write_log(tmp_path / "log")
    kill = judge(tmp_path, last_ns + 100_000_000)
    assert (kill.records, kill.segments, kill.violations) == (100, 1, [])
    assert kill.lost_s == pytest.approx(0.1)


def test_too_much_time_lost_and_damage_are_found(tmp_path):
    path, last_ns = write_log(tmp_path / "log")
    kill = judge(tmp_path, last_ns + 400_000_000)
    assert kill.violations == ["the last 0.400 s are lost, allowed are 0.25 s"]
    content = bytearray(path.read_bytes())
    place = len(content) // 3  # among the records
    content[place : place + 1000] = bytes(1000)
    path.write_bytes(content)
    (tmp_path / "recovered").rename(tmp_path / "earlier")
    assert "is not contiguous" in judge(tmp_path, last_ns).violations[0]


def test_a_log_that_cannot_be_read_is_a_violation(tmp_path):
    (tmp_path / "log").mkdir()
    assert "cannot be read" in judge(tmp_path, time.time_ns()).violations[0]


def test_nonsense_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--kills", 0)
    assert "kills must be more than 0, got 0" in capsys.readouterr().err
