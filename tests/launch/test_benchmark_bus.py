"""The command ``bus``: both parts run end to end, print tables and write everything to a file."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from hw_drivers.benchmarks.readers import READERS

SCRIPT = Path(__file__).parents[2] / "launch" / "benchmark.py"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "bus", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_late_answers_are_counted_for_each_driver_and_scenario(tmp_path, monkeypatch, capsys):
    file = tmp_path / "late.json"
    settings = ["--reads", "20", "--servos", "2", "--scenarios", "late", "other-id", "--terminal-reads", "3", "--seed", "4"]
    run(monkeypatch, "late", *settings, "--json", str(file))
    out, err = capsys.readouterr()
    assert "late, simulated time: 20 reads of 2 servos" in out
    assert "late, terminal time: 3 reads" in out
    assert "100 %" in err
    result = json.loads(file.read_text())
    assert (result["command"], result["part"]) == ("bus", "late")
    assert result["settings"]["seed"] == 4
    assert result["versions"]["pyserial"]
    assert result["machine"]["cpu"]
    assert [(entry["time"], entry["scenario"]) for entry in result["campaigns"]] == [
        ("simulated", "late"),
        ("simulated", "other-id"),
        ("terminal", "late"),
    ]
    present = [(reader.family.name, reader.name) for reader in READERS if not reader.missing]
    for entry in result["campaigns"]:
        assert [(outcome["family"], outcome["reader"]) for outcome in entry["outcomes"]] == present
        for outcome in entry["outcomes"]:
            assert outcome["asked"] == outcome["accepted"] + outcome["missed"] == 2 * outcome["reads"]
    assert len(present) + len(result["left_out"]) == len(READERS)
    ours = [outcome for outcome in result["campaigns"][0]["outcomes"] if outcome["reader"] == "ours"]
    assert [outcome["wrong_accepted"] for outcome in ours] == [0, 0]


def test_cycles_are_timed_beside_the_least_that_they_need(tmp_path, monkeypatch, capsys):
    file = tmp_path / "cycle.json"
    settings = ["--servos", "2", "--cycles", "8", "--return-delays-us", "0", "--terminal-cycles", "3"]
    run(monkeypatch, "cycle", *settings, "--quiet", "--json", str(file))
    out, err = capsys.readouterr()
    assert "one servo falls silent" in out
    assert err == ""
    buses = json.loads(file.read_text())["buses"]
    assert [(bus["family"], bus["baud_rate"]) for bus in buses] == [
        ("dynamixel", 1_000_000),
        ("dynamixel", 4_000_000),
        ("feetech", 1_000_000),
    ]
    for bus in buses:
        assert 1 < bus["ratio"] == bus["simulated"]["mean_s"] / bus["least_s"] <= bus["largest_ratio"] <= 1.25
        assert f"{bus['ratio']:.3f}" in out
        assert bus["terminal"]["asked"] == 6
        assert set(bus["silent_servo"]) == {"first", "last"}


@pytest.mark.parametrize("part", ["late", "cycle"])
def test_help_shows_units_and_defaults(part, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, part, "--help")
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert {"late": "(default: 10000)", "cycle": "us (default: [0, 500])"}[part] in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["late", "--scenarios", "lat"], "Did you mean 'late'?"),
        (["late", "--reads", "0"], "reads must be 1 or more, got 0"),
        (["late", "--servos", "99"], "servos must be 1 to 20, got 99"),
        (["cycle", "--servos", "6", "0"], "servos must be 1 to 20, got 0"),
        (["cycle", "--return-delays-us", "3"], "an even number of microseconds up to 508, got 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, *arguments)
    assert left.value.code == 1
    assert message in capsys.readouterr().err
