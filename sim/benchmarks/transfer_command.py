"""The command ``transfer`` of the benchmark program: a reaching policy in simulation and on an arm, target by target."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import dump_config, load_config
from dpg_robot.data.robot_log import load_transitions
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ConfigError, LogError, SafetyError
from dpg_robot.policy_file import read_policy_file
from sim.benchmarks.reach_transfer import Reaching, distances_to, draw_targets, reach_in_simulation, require_reach
from sim.benchmarks.tables import markdown_table
from sim.tasks.so101 import JOINT_LIMITS_RAD

_JOINTS = len(JOINT_LIMITS_RAD)
_FEWEST_STOPS, _MOST_STOPS = 3, 0.2  # of an arm, the latter as a share of the targets


def add_transfer_arguments(commands: Any, launch: Path, configs: Path) -> None:
    """Add the command ``transfer`` and its options to the sub-commands of a parser.

    Args:
        commands: the sub-commands.
        launch: folder of the launch scripts.
        configs: folder of the configurations.
    """
    parser = commands.add_parser(
        "transfer",
        help="a reaching policy in simulation and on an SO-101, target by target",
        description="Let a policy trained on so101-reach reach for the same targets from the same pose in simulation (nominal "
        "and randomized) and on an arm, by default an emulated one with hidden dynamics, through the program and driver of a "
        "real one. An episode succeeds when the tip stays within 2 cm of its target for the last half second.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--policy", type=Path, required=True, metavar="FILE", help="policy.onnx")
    parser.add_argument("--robot", type=Path, default=configs / "robots" / "so101.yaml", metavar="FILE", help="the arm")
    parser.add_argument("--port", metavar="DEV", help="serial port of a real arm; without, an emulated one is started")
    parser.add_argument("--targets", type=int, default=50, metavar="N", help="number of targets")
    parser.add_argument("--arms", type=int, default=1, metavar="N", help="emulated arms, with hidden dynamics of their own")
    parser.add_argument("--episode-seconds", type=float, default=4.0, metavar="S", help="time for each target, s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of targets and dynamics")
    parser.add_argument(
        "--randomization", default=str(configs / "randomization" / "so101.yaml"), metavar="NAME", help="of the dynamics"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=lambda arguments: run_transfer(arguments, launch))


def run_transfer(arguments: argparse.Namespace, launch: Path) -> dict[str, Any]:
    """Measure, print the table, and return all that was measured."""
    contract = read_policy_file(arguments.policy)[1].contract
    require_reach(contract, arguments.policy)
    robot = load_config(RobotConfig, arguments.robot)
    robot.require_fit(contract, arguments.policy)
    targets = draw_targets(arguments.targets, arguments.seed)
    home = np.array([robot.device["servos"][joint].get("home", 0.0) for joint in JOINT_LIMITS_RAD])
    results = {
        f"simulation, {name}": reach_in_simulation(
            arguments.policy, targets, home, arguments.episode_seconds, randomization=randomization, seed=arguments.seed
        )
        for name, randomization in (("nominal", "none"), ("randomized", arguments.randomization))
    }
    if arguments.port:
        results["arm"] = reach_on_arm(arguments, launch, robot, arguments.port, targets)
    else:
        for seed in range(arguments.arms):
            with emulated_arm(launch, arguments.robot, seed) as port:
                results[f"emulated arm {seed}"] = reach_on_arm(arguments, launch, robot, port, targets)
    print(describe(results))
    return {
        "policy": str(arguments.policy), "targets": targets.round(5).tolist(),
        "results": {name: result.to_dict() for name, result in results.items()},
    }  # fmt: skip


def reach_on_arm(
    arguments: argparse.Namespace, launch: Path, robot: RobotConfig, port: str, targets: NDArray[np.float64]
) -> Reaching:
    """Let ``robot.py`` run an episode for each target on the arm at a port, and return how near it came, from its log.

    When the arm is stopped, because it pushes against the table for example, it starts again with the targets that are left; an
    episode that was under way has failed.

    Raises:
        SafetyError: the arm was stopped too often; the reasons stand on stderr.
        ConfigError: the arm's goals are not the targets.
    """
    goals = robot.device.get("goals", {})
    if len(goals.get("channels", ())) != 3:
        raise ConfigError(f"{arguments.robot}: device.goals must have 3 channels for the target, got {goals.get('channels')}")
    episodes: list[NDArray[np.float64]] = []
    stops = 0
    while len(episodes) < len(targets):
        left = targets[len(episodes) :]
        device = robot.device | {"goals": goals | {"values": left.tolist()}}
        episodes += _run_episodes(arguments, launch, dataclasses.replace(robot, device=device), port, len(left))
        if len(episodes) < len(targets):
            stops += 1
            if stops > max(_FEWEST_STOPS, _MOST_STOPS * len(targets)):
                raise SafetyError(f"the arm was stopped {stops} times, after {len(episodes)} of {len(targets)} targets")
            print(f"transfer: stopped after {len(episodes)} of {len(targets)} targets; it goes on", file=sys.stderr)
    return Reaching(distances_to(targets[:, None], np.stack(episodes)), robot.rate_hz, stops)


def _run_episodes(
    arguments: argparse.Namespace, launch: Path, robot: RobotConfig, port: str, count: int
) -> list[NDArray[np.float64]]:
    """Run episodes and return the joints' angles (T, 5) of each that began, rad; NaN where the last one was stopped."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump_config(robot, folder / "robot.yaml")
        command = [
            sys.executable, str(launch / "robot.py"), "run", "--robot", str(folder / "robot.yaml"), "--policy",
            str(arguments.policy), "--port", port, "--log", str(folder / "log"), "--json", str(folder / "run.json"), "--episodes",
            str(count), "--episode-seconds", str(arguments.episode_seconds),
        ]  # fmt: skip
        code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if code and not (folder / "run.json").exists():
            raise SafetyError(f"robot.py ended with exit code {code}, for the reason above")
        run = json.loads((folder / "run.json").read_text())["run_id"]
        try:
            transitions = load_transitions(folder / "log" / run)
        except LogError:
            if not code:
                raise
            return []  # it was stopped before the first episode
    steps = round(arguments.episode_seconds * robot.rate_hz)
    found = []
    for episode in range(min(count, int(transitions.episode.max()) + 1)):
        joints = transitions.next_measurement[transitions.episode == episode][:steps, :_JOINTS]
        found.append(np.pad(joints.astype(np.float64), ((0, steps - len(joints)), (0, 0)), constant_values=np.nan))
    return found


@contextmanager
def emulated_arm(launch: Path, robot: Path, seed: int) -> Iterator[str]:
    """Serve an emulated arm for the length of a ``with``; gives its port."""
    command = [sys.executable, str(launch / "emulate.py"), "so101", "--robot", str(robot), "--seed", str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port.startswith("/dev/"):
            raise ConfigError("the emulated arm did not start, for the reason above")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)


def describe(results: dict[str, Reaching]) -> str:
    """Return the results as a table."""
    rows = [["", "episodes", "stops", "success", "median distance in the last half second (mm)", "90th percentile (mm)"]]
    for name, result in results.items():
        final = 1e3 * result.final
        rows.append(
            [
                name,
                str(len(final)),
                str(result.stops),
                f"{100 * result.success:.0f} +- {100 * result.success_error:.0f} %",
                f"{np.nanmedian(final):.1f}",
                f"{np.nanpercentile(final, 90):.1f}",
            ]
        )
    return "\n".join(markdown_table(rows))
