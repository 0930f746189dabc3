"""The program for logs and data sets, run as a user runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sim
from dpg_robot.config import load_config
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.mapping import DatasetMapping
from dpg_robot.data.minari_format import read_dataset
from dpg_robot.data.robot_log import load_transitions
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype
from sim.tasks import make_task

pytest.importorskip("minari")
pytest.importorskip("h5py")
pytest.importorskip("pyarrow")

ROOT = Path(__file__).parents[2]
STEPS = 30


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("launch_data", ROOT / "launch" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def run(program, capsys):
    """Run the program; returns the exit code and what it printed."""

    def run(*arguments):
        capsys.readouterr()
        code = program([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def write_log(folder, task="cartpole-swingup", episodes=3):
    contract = sim.make(task, action_repeat=2).contract(history=1)
    random = np.random.default_rng(0)
    count = episodes * (STEPS + 1)
    records = np.zeros(count, tick_dtype(contract.num_measurements, contract.num_actions))
    records["sequence"] = records["period"] = np.arange(count)
    records["episode"], records["step"] = np.divmod(np.arange(count), STEPS + 1)
    records["state"], records["valid"] = LoopState.RUNNING, True
    records["episode_end"] = np.where(records["step"] == STEPS, EpisodeEnd.TIMEOUT, EpisodeEnd.NOT_ENDED)
    records["time_ns"] = records["wall_ns"] = np.arange(count) * contract.period_ns
    records["measurement"] = random.normal(size=records["measurement"].shape)
    records["action"] = records["intended_action"] = random.uniform(-1, 1, records["action"].shape)
    records["command"] = contract.scale_action(records["action"])
    records["safety"][40:45] = 8
    with LogWriter(folder, "run-a", contract, segment_bytes=6_000) as writer:
        for part in np.array_split(records, 10):
            writer.append(part)
            writer.flush()
    return folder


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path / "log")


def damage(log):
    path = sorted(log.glob("*/*.mcap"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    path.write_bytes(content)


def test_a_robot_log_becomes_a_data_set_with_the_tasks_rewards(run, log, tmp_path):
    code, said = run("export", log, "--to", "minari", "--out", tmp_path / "sets", "--json", tmp_path / "facts.json")
    assert code == 0, said
    dataset = read_dataset(tmp_path / "sets" / "cartpole-swingup" / "robot-v0")
    assert dataset.contract.history == 0
    steps = load_transitions(log)
    wanted = 2 * make_task("cartpole-swingup").measured_reward(steps.next_measurement, steps.action)
    np.testing.assert_allclose(dataset.transitions().reward, wanted, atol=1e-6)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["transitions"], facts["episodes"], facts["written"]) == (
        90,
        3,
        str(tmp_path / "sets/cartpole-swingup/robot-v0"),
    )


def test_a_data_set_goes_through_all_formats(run, log, tmp_path):
    run("export", log, "--to", "minari", "--out", tmp_path / "a")
    first = tmp_path / "a/cartpole-swingup/robot-v0"
    assert run("export", first, "--to", "lerobot", "--out", tmp_path / "lerobot")[0] == 0
    assert run("import", tmp_path / "lerobot", "--out", tmp_path / "b")[0] == 0
    assert run("export", tmp_path / "lerobot", "--to", "csv", "--out", tmp_path / "set.csv")[0] == 0
    for path in (first, tmp_path / "lerobot"):
        code, said = run("check", path)
        assert (code, "90 transitions in 3 episodes of cartpole-swingup (1.8 s at 50 Hz)" in said) == (0, True)
        code, said = run("info", path)
        assert (code, "actions: cart_force -10 to 10 N" in said) == (0, True)
        assert run("report", path)[0] == 0
    one, other = read_dataset(first), read_dataset(tmp_path / "b/cartpole-swingup/robot-v0")
    for ours, theirs in zip(one.episodes, other.episodes, strict=True):
        assert ours.observations.tobytes() == theirs.observations.tobytes()
        assert ours.rewards.tobytes() == theirs.rewards.tobytes()
    rows = (tmp_path / "set.csv").read_text().splitlines()
    assert rows[0].startswith("episode,step,observation:cart_position,observation:cos(pole_angle)")
    assert len(rows) == 1 + 3 * (STEPS + 1)
    assert np.float32(rows[1].split(",")[2]) == one.episodes[0].observations[0, 0]


def test_nothing_is_overwritten(run, log, tmp_path):
    for form, out in (("minari", "sets"), ("lerobot", "lerobot"), ("csv", "a.csv")):
        arguments = ("export", log, "--to", form, "--out", tmp_path / out, "--without-rewards")
        assert run(*arguments)[0] == 0
        code, said = run(*arguments)
        assert code == 1
        assert "exists already" in said


def test_a_task_that_cannot_tell_its_reward_is_refused_with_the_way_out(run, tmp_path):
    log = write_log(tmp_path / "log", "hopper-hop", episodes=1)
    code, said = run("export", log, "--to", "csv", "--out", tmp_path / "a.csv")
    assert code == 1
    assert "cannot compute its reward" in said
    assert "--without-rewards" in said
    assert run("export", log, "--to", "csv", "--out", tmp_path / "a.csv", "--without-rewards")[0] == 0


def test_check_says_with_its_exit_code_whether_something_is_lost(run, log, tmp_path):
    code, said = run("check", log)
    assert (code, "93 records" in said) == (0, True)
    damage(log)
    code, said = run("check", log, "--json", tmp_path / "check.json")
    assert (code, "problem: segment-000001.mcap" in said) == (1, True)
    assert json.loads((tmp_path / "check.json").read_text())["contiguous"] is False


def test_a_damaged_log_is_refused_recovered_and_then_used(run, log, tmp_path):
    damage(log)
    code, said = run("export", log, "--to", "csv", "--out", tmp_path / "a.csv")
    assert (code, "not contiguous" in said) == (1, True)
    code, said = run("recover", log, "--out", tmp_path / "copy", "--json", tmp_path / "recovery.json")
    assert (code, "copy of what could be read" in said) == (1, True)
    facts = json.loads((tmp_path / "recovery.json").read_text())
    assert (facts["complete"], 0 < facts["recovered"]["run-a"]["records"] < 93) == (False, True)
    code, said = run("export", tmp_path / "copy", "--to", "csv", "--out", tmp_path / "a.csv", "--skip-damage")
    assert code == 0, said


def test_info_report_and_plot_of_a_log(run, log, tmp_path):
    code, said = run("info", log, "--json", tmp_path / "info.json")
    assert code == 0
    assert "run run-a: cartpole-swingup at 50 Hz" in said
    assert "safety: rate_limited 5" in said
    assert json.loads((tmp_path / "info.json").read_text())["runs"][0]["records"] == 93
    code, said = run("report", log, "--json", tmp_path / "report.json")
    assert (code, "90 transitions in 3 episodes; 0 errors" in said) == (0, True)
    assert json.loads((tmp_path / "report.json").read_text())["transitions"] == 90
    assert run("plot", log / "run-a", "--out", tmp_path / "run.png")[0] == 0
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_files_of_others_come_in_through_a_mapping(run, tmp_path):
    import h5py

    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        for number in range(2):
            demo = file.create_group(f"data/demo_{number}")
            for name, size in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2), ("object", 10)):
                demo[f"obs/{name}"] = random.normal(size=(8, size))
            demo["actions"], demo["rewards"], demo["dones"] = random.uniform(-1, 1, (8, 7)), np.zeros(8), np.arange(8) == 7
    mapping = ROOT / "configs/datasets/robomimic_lift.yaml"
    code, said = run(
        "import", tmp_path / "lift.hdf5", "--mapping", mapping, "--out", tmp_path / "sets", "--name", "lift/human-v0"
    )
    assert code == 0, said
    assert "note: 2 times: last terminal action dropped" in said
    dataset = read_dataset(tmp_path / "sets/lift/human-v0")
    assert (len(dataset), dataset.contract.num_features) == (14, 19)
    code, said = run("import", tmp_path / "lift.hdf5", "--mapping", ROOT / "configs/datasets/d4rl.yaml", "--out", tmp_path / "x")
    assert (code, "unknown column" in said) == (1, True)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_mappings_that_come_along_can_be_loaded(path):
    assert load_config(DatasetMapping, path).columns


def test_what_is_no_data_is_refused(run, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither an HDF5 nor an MCAP file" in run("info", tmp_path / "notes.txt")[1]
    assert "holds no robot log" in run("check", tmp_path)[1]
    code, said = run("report", tmp_path / "notes.text")
    assert (code, "Did you mean 'notes.txt'?" in said) == (1, True)


def test_help_lists_commands_and_the_settings_of_a_mapping_and_needs_no_simulation():
    script = str(ROOT / "launch" / "data.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, script, "--help"], env=environment, capture_output=True, text=True, check=True).stdout
    assert all(name in said for name in ("check", "info", "recover", "export", "import", "plot", "report"))
    code = f"import runpy, sys\nsys.argv = [{script!r}, 'import', '--help']\n"
    code += f"try: runpy.run_path({script!r}, run_name='__main__')\n"
    code += "except SystemExit: print([name for name in ('torch', 'mujoco', 'sim') if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert "resampling.max_age_s=0.5 s" in said
    assert "final_observation=drop" in said
    assert said.strip().endswith("[]")
