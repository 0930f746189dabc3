#!/usr/bin/env python
"""The whole loop on one machine: pretrain, export, run on a virtual robot, log, fine-tune, send back, run again."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpg_robot.config import add_config_arguments, config_from_arguments, dump_config, setting
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from dpg_robot.host.demo_figure import draw_demo_figure
from dpg_robot.host.robot_report import episode_returns
from dpg_robot.policy_file import read_policy_file
from sim.tasks import make_task

ROOT = Path(__file__).resolve().parent.parent
ROBOT_STARTS = 3
"""Most starts of the loop in one stage: a busy machine may hold up the virtual robot until the loop stops safely."""


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demonstration."""

    seed: int = setting(0, "seed of everything random")
    robot_seed: int = setting(7, "seed of the virtual robot's hidden parameters")
    updates: int = setting(16_000, "gradient updates of pretraining")
    episodes: int = setting(5, "episodes on the robot, before and after fine-tuning")
    exploration_episodes: int = setting(4, "further episodes on the robot with exploration noise, to learn from")
    exploration: float = setting(0.2, "standard deviation of that noise", unit="share of half the action range")
    episode_seconds: float = setting(10.0, "length of the robot's episodes", unit="s")
    finetune_updates: int = setting(3_000, "gradient updates of fine-tuning")


class Stages:
    """Runs the stages one after the other and remembers how long each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce and time a stage."""
        print(f"\n== {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)


def launch_command(script: str, *arguments: object) -> list[str]:
    """Return the command that runs a launch script."""
    return [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)]


def call(script: str, *arguments: object) -> None:
    """Run a launch script to its end; ends the demonstration when it fails."""
    command = launch_command(script, *arguments)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(f"demo: {script} failed with exit code {code}: {' '.join(command)}")


@contextmanager
def virtual_robot(folder: Path, seed: int) -> Iterator[Path]:
    """Start the virtual robot in a process of its own and yield the path of its serial port."""
    link = folder / "robot-port"
    command = [sys.executable, str(ROOT / "launch" / "emulate.py"), "cartpole", "--seed", str(seed), "--link", str(link)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("/dev/"):
            raise SystemExit("demo: the virtual robot did not start; see its message above")
        yield link
    finally:
        process.terminate()
        process.wait(timeout=10)


def run_robot(config: DemoConfig, folder: Path, port: Path, name: str, episodes: int, exploration: float) -> dict[str, Any]:
    """Run episodes with the store's current policy on the robot and return the summary, the returns and earlier, stopped runs."""
    result, policy = folder / f"robot-{name}.json", folder / "store" / "policy.onnx"
    how = ["--episodes", episodes, "--episode-seconds", config.episode_seconds, "--explore", exploration, "--seed", config.seed]
    command = launch_command(
        "robot.py", "run", "--policy", policy, "--port", port, "--log", folder / "log", "--json", result, *how
    )
    stopped: list[dict[str, Any]] = []
    while True:
        result.unlink(missing_ok=True)
        code = subprocess.run(command, check=False).returncode
        summary = json.loads(result.read_text()) if result.exists() else None
        if code == 0 and summary is not None:
            break
        fault = summary is not None and summary["loop"] is not None and summary["loop"]["fault"]
        if summary is None or not fault or len(stopped) + 1 == ROBOT_STARTS:
            raise SystemExit(f"demo: robot.py failed with exit code {code}: {' '.join(command)}")
        stopped.append({"run_id": summary["run_id"], "reason": summary["loop"]["reason"], "transitions": summary["transitions"]})
        print("demo: the loop stopped the robot safely, for the reason above; it is started again", file=sys.stderr, flush=True)
    run = folder / "log" / summary["run_id"]
    contract = read_policy_file(policy)[1].contract
    returns = episode_returns(run, contract, make_task(contract.task).measured_reward)
    return {
        "run": str(run), "policy_id": summary["policy_id"], "return": returns.to_dict(), "summary": summary, "stopped": stopped
    }  # fmt: skip


def carry_out(config: DemoConfig, folder: Path) -> dict[str, Any]:
    """Run all stages and return the report."""
    stages, started = Stages(), time.monotonic()
    pretrained, store = folder / "pretrain", folder / "store"
    with stages.stage("pretrain in simulation"):
        call("pretrain.py", "--run", pretrained, "--json", folder / "pretrain.json",
             f"seed={config.seed}", f"trainer.updates={config.updates}")  # fmt: skip
    with stages.stage("export to ONNX"):
        call("export.py", "--run", pretrained, "--json", folder / "export.json")
        call("host.py", "publish", "--policy", pretrained / "policy.onnx", "--store", store)
    with virtual_robot(folder, config.robot_seed) as port:
        with stages.stage("robot, before fine-tuning"):
            before = run_robot(config, folder, port, "before", config.episodes, 0.0)
        with stages.stage("robot, exploring"):
            exploring = run_robot(config, folder, port, "exploring", config.exploration_episodes, config.exploration)
        pretraining = json.loads((folder / "pretrain.json").read_text())
        with stages.stage("fine-tune on the host"):
            call("host.py", "finetune", "--once", "--log", folder / "log", "--checkpoint", pretraining["checkpoint"],
                 "--store", store, "--run", folder / "finetune", "--json", folder / "finetune.json",
                 f"finetune.updates={config.finetune_updates}", f"finetune.seed={config.seed}")  # fmt: skip
        with stages.stage("robot, after fine-tuning"):
            after = run_robot(config, folder, port, "after", config.episodes, 0.0)
    runs = {"before": before, "exploring": exploring, "after": after}
    return make_report(folder, runs, stages.seconds | {"all stages": round(time.monotonic() - started, 2)})


def make_report(folder: Path, runs: dict[str, dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    """Gather what the stages measured."""
    pretraining, finetuning = (json.loads((folder / f"{name}.json").read_text()) for name in ("pretrain", "finetune"))
    loops = {name: run["summary"]["loop"] for name, run in runs.items()}
    logged = sum(
        run["transitions"] for name in ("before", "exploring") for run in (runs[name]["summary"], *runs[name]["stopped"])
    )
    return {
        "return_in_simulation": pretraining["return"],
        "return_on_robot": {name: run["return"] for name, run in runs.items()},
        "held_out_robot_data": {when: finetuning[when] for when in ("before", "after")},
        "verdict": finetuning["verdict"],
        "sent_back": finetuning["verdict"]["passed"],
        "policy_changed": runs["after"]["policy_id"] != runs["before"]["policy_id"],
        "transitions": {"logged": logged} | finetuning["transitions"],
        "loop": {
            name: {key: loop[key] for key in ("rate_hz", "wakeup_latency_us", "period_us", "compute_us", "missed_periods")}
            for name, loop in loops.items()
        },
        "real_time": loops["after"]["real_time"],
        "stopped_runs": [stopped for run in runs.values() for stopped in run["stopped"]],
        "export": json.loads((folder / "export.json").read_text()),
        "learning_curve": pretraining["evaluations"],
        "seconds": seconds,
        "runs": {name: run["run"] for name, run in runs.items()},
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
    }


def print_report(report: dict[str, Any], folder: Path) -> None:
    """Print the report's main figures."""
    robot, held_out = report["return_on_robot"], report["held_out_robot_data"]
    counts, loop = report["transitions"], report["loop"]["after"]
    latency = loop["wakeup_latency_us"]

    def score(value: dict[str, Any]) -> str:
        return f"{value['mean']:6.1f} +- {value['standard_error']:.1f} ({len(value['returns'])} episodes)"

    lines = [
        f"return in simulation, randomized   {score(report['return_in_simulation'])}",
        f"return on the robot, before        {score(robot['before'])}",
        f"return on the robot, after         {score(robot['after'])}",
        f"held-out robot data, before/after  denoising error {held_out['before']['denoising_error']:.4f} / "
        f"{held_out['after']['denoising_error']:.4f}, TD error {held_out['before']['td_error']:.4f} / "
        f"{held_out['after']['td_error']:.4f}",
        f"transitions                        {counts['logged']} logged, {counts['received']} received, {counts['used']} used, "
        f"{counts['excluded']} excluded",
        f"control loop                       {loop['rate_hz']:.2f} Hz, wake-up latency p50 {latency['p50']:.0f} us, "
        f"p99 {latency['p99']:.0f} us, p99.9 {latency['p99.9']:.0f} us, {loop['missed_periods']} missed deadlines",
        f"seconds                            {report['seconds']['all stages']:.0f}",
        f"report                             {folder / 'report.json'}, {folder / 'report.png'}",
    ]
    print("\n" + "\n".join(lines))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, DemoConfig, ROOT / "configs" / "demo.yaml")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder, emptied first (default: %(default)s)")
    arguments = parser.parse_intermixed_args()
    try:
        config = config_from_arguments(DemoConfig, arguments)
        folder: Path = arguments.run.resolve()
        if folder.exists() and not (folder / "demo.yaml").exists() and any(folder.iterdir()):
            raise SystemExit(f"demo: {folder} is not empty and not an earlier demo; choose another --run folder")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dump_config(config, folder / "demo.yaml")
        report = carry_out(config, folder)
        write_atomically(folder / "report.json", json.dumps(report, indent=1).encode())
        draw_demo_figure(report, folder / "report.png")
    except (DpgError, OSError) as error:
        parser.exit(1, f"demo: {error}\n")
    print_report(report, folder)


if __name__ == "__main__":
    main()
