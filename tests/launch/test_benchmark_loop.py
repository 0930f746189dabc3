"""The command ``loop``: real runs of both robots beside the bare loop, and what is computed from them."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.policy_file import read_policy_file
from hw_drivers.benchmarks import loop_runs
from hw_drivers.benchmarks.loop_alone import measure_memory
from hw_drivers.benchmarks.loop_bare import compile_bare_loop, run_bare_loop
from hw_drivers.benchmarks.loop_programs import ProgramError, busy_processes, run_program, served
from hw_drivers.benchmarks.loop_robot import make_contract, make_robot_config, wire_time_s
from hw_drivers.benchmarks.loop_runs import Plan, Runner, Slice, compare, summarize
from hw_drivers.benchmarks.loop_wakeups import Wakeups, percentiles_us, summarize_wakeups
from sim.benchmarks.loop_policy import write_untrained_policies

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "benchmark.py"
DEADLINE_S = 60.0


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "loop", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def wakeups(points, late_us, *, period_us=1000, due=None):
    points = np.array(points, np.int64)
    due = len(points) if due is None else due
    return Wakeups(period_us * 1000, points, np.array(late_us, np.int64) * 1000, due)


def test_robots_and_bare_loop_take_turns_and_everything_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    file = tmp_path / "loop.json"
    sizes = ["--servos", 2, "--hidden", 8, 8, "--steps", 300, "--ticks", 400]
    run(monkeypatch, "--rates", 50, "--seconds", 0.4, "--slices", 1, "--load", "idle", *sizes, "--json", file)
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "1/5: step of the policy",
        "2/5: idle, 50 Hz, bare",
        "3/5: idle, 50 Hz, servos",
        "4/5: idle, 50 Hz, instant",
        "5/5: memory",
    ]
    result = json.loads(file.read_text())
    assert result["command"] == "loop"
    assert result["settings"]["hidden"] == [8, 8]
    assert result["versions"]["onnxruntime"]
    assert result["kernel"]
    assert result["failed"] == []
    bare, servos, instant = result["loops"]
    for loop in (bare, servos, instant):
        assert loop["ticks"] + loop["missed"] >= 20
        assert 0 <= loop["latency_us"]["p50"] <= loop["latency_us"]["p99.9"] <= loop["latency_us"]["max"]
    for loop in (servos, instant):
        assert loop["over_bare"]["p50"] == pytest.approx(loop["latency_us"]["p50"] / bare["latency_us"]["p50"], abs=1e-3)
        assert (loop["records"]["refused"], loop["records_lost"], loop["stopped"]) == (0, 0, [])
        assert loop["records"]["pushed"] == loop["records"]["logged"] > loop["ticks"]
    assert servos["fresh_measurements"] > 0
    assert instant["fresh_measurements"] == 1.0
    assert result["step"]["steps"] == 300
    assert list(result["memory"]["rss_bytes"])[-1] == "400"
    for text in ("woken up late by", "a step of the policy alone, 8 x 8", "after 400", "allows 4651 Hz"):
        assert text in out


def test_help_shows_units_and_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--help")
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "an hour at 100 Hz); 0 for none (default: 360000)" in shown
    assert "bare loop, s (default: 60.0)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load", "idel"], "Did you mean 'idle'?"),
        (["--robots", "servo"], "Did you mean 'servos'?"),
        (["--rates", "100", "0"], "rates must be 1 to 10000 Hz, got 0"),
        (["--rates", "10", "--seconds", "1", "--slices", "6"], "at least 2 ticks; got 1 s in 6 slices"),
        (["--slices", "0"], "in 0 slices"),
        (["--seconds", "nan"], "got nan s"),
        (["--servos", "0"], "servos must be 1 to 20, got 0"),
        (["--priority", "100"], "priority must be 0 to 99, got 100"),
        (["--hidden", "8", "0"], "1 unit or more, got [8, 0]"),
        (["--ticks", "5"], "ticks 0 or at least 100, got 20000 and 5"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, *arguments)
    assert left.value.code == 1
    assert message in capsys.readouterr().err


def test_without_a_compiler_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError, match=r"needs a compiler.*apt install gcc"):
        compile_bare_loop(tmp_path)


def test_the_bare_loop_wakes_up_at_rising_grid_points_and_never_early(tmp_path):
    program = compile_bare_loop(tmp_path)
    woken, grants = run_bare_loop(program, rate_hz=2000, seconds=0.25, priority=0)
    assert (woken.period_ns, woken.due) == (500_000, 500)
    assert (np.diff(woken.points) >= 1).all()
    assert 1 <= woken.points[0] <= woken.points[-1] <= 500
    assert (woken.late_ns >= 0).all()
    assert grants == {"SCHED_FIFO": "not asked for", "mlockall": "not asked for"}


def test_the_bare_loop_skips_the_grid_points_that_have_passed(tmp_path):
    woken, _ = run_bare_loop(compile_bare_loop(tmp_path), rate_hz=5e6, seconds=0.01, priority=0)  # no sleep is as short as that
    assert 0 < len(woken.points) < woken.due == 50_000
    assert woken.points[-1] <= woken.due


def test_the_bare_loop_says_what_it_was_granted(tmp_path):
    _, grants = run_bare_loop(compile_bare_loop(tmp_path), rate_hz=1000, seconds=0.01, priority=1)
    assert list(grants) == ["SCHED_FIFO", "mlockall"]
    assert all(text == "granted" or text.startswith("refused (") for text in grants.values())


def test_missed_grid_points_are_counted_and_have_no_period():
    summary = summarize_wakeups([wakeups([1, 2, 4, 5], [10, 30, 500, 5], due=6), wakeups([1], [40])])
    assert (summary["ticks"], summary["missed"]) == (5, 2)
    assert summary["latency_us"] == {"p50": 30.0, "p99": 500.0, "p99.9": 500.0, "max": 500.0}
    assert summary["period_us"] == {"p50": 505.0, "p99": 1020.0, "p99.9": 1020.0, "max": 1020.0}


def test_percentiles_are_among_the_times_and_over_all_pieces():
    pieces = [np.arange(1, 501) * 1000, np.arange(501, 1001) * 1000]
    assert percentiles_us(pieces) == {"p50": 500.0, "p99": 990.0, "p99.9": 999.0, "max": 1000.0}
    assert percentiles_us([np.empty(0, np.int64)]) is None


def test_lost_records_late_commands_and_early_ends_are_summed_up():
    one = Slice(wakeups([1, 2], [10, 10]), {}, 0.5, np.array([400_000, 600_000]), 1.0, pushed=10, refused=1, logged=9)
    two = dataclasses.replace(one, fresh=0.5, refused=0, logged=10, stopped="the robot is on fire")
    summary = summarize([one, two])
    assert summary["records"] == {"pushed": 20, "refused": 1, "logged": 19}
    assert (summary["records_lost"], summary["late_commands"], summary["fresh_measurements"]) == (2, 2, 0.75)
    assert summary["stopped"] == ["the robot is on fire"]
    assert compare(summary, summarize([Slice(wakeups([1], [4]), {}, 0.5)]))["p99"] == 2.5


def test_the_wire_time_is_that_of_the_bytes():
    # sync read 14 + 6; six status packets of 11 + 12; sync write 14 + 6 * (1 + 4); 10 bits each at 4 Mbit/s
    assert wire_time_s(6) == pytest.approx((20 + 6 * 23 + 44) * 10 / 4e6)


def test_policies_differ_in_nothing_but_their_rate(tmp_path):
    slow, fast = make_contract(2, 100.0), make_contract(2, 1000.0)
    paths = tmp_path / "slow.onnx", tmp_path / "fast.onnx"
    write_untrained_policies({paths[0]: slow, paths[1]: fast}, [8, 16])
    sessions = [PolicySession.load(path, contract) for path, contract in zip(paths, (slow, fast), strict=True)]
    first, second = ([session.step(np.full(4, 0.3)).tolist() for _ in range(3)] for session in sessions)
    assert first == second
    assert max(map(max, first)) != 0
    weights = onnx.load_from_string(read_policy_file(paths[1])[0]).graph.initializer
    matrices = [tuple(weight.dims) for weight in weights if len(weight.dims) == 2]
    assert [matrix for matrix in matrices if min(matrix) > 1] == [(8, 16), (16, 8), (4, 16)]  # 4 features and 2 frames of 6


def test_memory_is_sampled_up_to_the_last_tick_and_an_early_end_is_an_error(tmp_path):
    policy, other = tmp_path / "policy.onnx", tmp_path / "other.onnx"
    write_untrained_policies({policy: make_contract(1, 1e6)}, [8])
    memory = measure_memory(policy, 7000)
    marks = [int(mark) for mark in memory["rss_bytes"]]
    assert marks == sorted(marks)
    assert (len(marks), marks[0], marks[-1]) == (20, 350, 7000)
    assert memory["ticks"] >= 7000
    assert min(memory["rss_bytes"].values()) > 1 << 20
    with pytest.raises(ProgramError, match=r"other\.onnx"):
        measure_memory(other, 100)


def test_busy_processes_run_beside_the_loops_under_load_only(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})

    def count_children(program, rate_hz, seconds, priority):
        seen.append(len(psutil.Process().children()))
        return wakeups([1], [10]), {}

    monkeypatch.setattr(loop_runs, "run_bare_loop", count_children)
    plan = Plan([50.0, 60.0], ["idle", "load"], [], servos=1, slice_s=0.1, slices=2, priority=0, policies={})
    slices = Runner(plan, tmp_path, tmp_path, tmp_path).run(lambda what: None)
    assert [count - seen[0] for count in seen] == [0, 0, 3, 3, 0, 0, 3, 3]
    assert {key: len(some) for key, some in slices.items()} == {
        (condition, rate, "bare"): 2 for condition in plan.conditions for rate in plan.rates_hz
    }


def test_a_loop_that_does_not_come_to_its_episode_is_reported_and_the_others_go_on(tmp_path):
    summary = {"loop": {"episodes": []}, "log": {}, "exit_reason": "not ready within 5 s"}
    (tmp_path / "robot.py").write_text(
        "import pathlib, sys\n"
        f"pathlib.Path(sys.argv[sys.argv.index('--json') + 1]).write_text({json.dumps(summary)!r})\n"
        "sys.exit(1)"
    )
    plan = Plan([50.0], ["idle"], ["instant"], 1, slice_s=0.1, slices=2, priority=0, policies={50.0: tmp_path / "policy"})
    slices = Runner(plan, tmp_path, compile_bare_loop(tmp_path), tmp_path).run(lambda what: None)
    result = summarize(slices["idle", 50.0, "instant"])
    assert result["stopped"] == ["not ready within 5 s"] * 2
    assert (result["ticks"], result["latency_us"], result["compute_us"]) == (0, None, None)
    assert compare(result, summarize(slices["idle", 50.0, "bare"]))["p50"] is None


def test_a_robot_program_that_fails_is_quoted(tmp_path):
    (tmp_path / "robot.py").write_text("raise SystemExit('no such robot')")
    plan = Plan([50.0], ["idle"], ["instant"], servos=1, slice_s=0.1, slices=1, priority=0, policies={50.0: tmp_path / "none"})
    runner = Runner(plan, tmp_path, compile_bare_loop(tmp_path), tmp_path)
    begun = []
    with pytest.raises(ProgramError, match="exit code 1:\nno such robot"):
        runner.run(begun.append)
    assert begun == ["idle, 50 Hz, bare", "idle, 50 Hz, instant"]


def test_the_robot_is_patient_but_keeps_the_contract():
    contract = make_contract(6, 1000.0)
    robot = make_robot_config("servos", contract, priority=0, port="/dev/null")
    robot.require_fit(contract, Path("policy.onnx"))
    assert robot.safety.stale_patience_periods == 1000
    assert robot.read_timeout_s < 1e-3


def test_programs_that_fail_or_end_too_soon_are_errors():
    with pytest.raises(ProgramError, match="exit code 3:\nbroken"):
        run_program([sys.executable, "-c", "import sys; sys.stderr.write('broken'); sys.exit(3)"])
    with pytest.raises(ProgramError, match=r"did not end within 0\.05 s"):
        run_program([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.05)
    with pytest.raises(ProgramError, match="exit code 0"), served([sys.executable, "-c", ""]):
        pass


def test_busy_processes_end_with_the_block_and_with_their_parent():
    others = set(psutil.Process().children())  # of other tests, such as the tracker of their shared memory
    with busy_processes(2):
        children = set(psutil.Process().children()) - others
        assert len(children) == 2
    assert not any(child.is_running() for child in children)

    program = (
        "import time, psutil; from hw_drivers.benchmarks.loop_programs import busy_processes\n"
        "with busy_processes(1): print(psutil.Process().children()[0].pid, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        busy = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    end_s = time.monotonic() + DEADLINE_S
    while busy.is_running() and busy.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end_s, "the busy process outlived its parent"
        time.sleep(0.02)
