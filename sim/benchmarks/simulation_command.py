"""The command ``sim`` of the benchmark program: control steps per second of simulated environments."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpg_robot.config import config_from_dict, config_to_dict
from sim.benchmark import BenchmarkSettings, count_work, measure_task
from sim.benchmarks.tables import markdown_table

_TITLES = {
    "ours": "ours",
    "staggered": "ours, staggered",
    "bare": "bare MuJoCo",
    "dm_control": "dm_control",
    "processes": "in processes",
    "envpool": "EnvPool",
}
_NOTES = """\
ours: {environments} environments on {threads} threads, randomization and disturbance medium, resets included
ours, staggered: the same with episodes that end one by one instead of together
bare MuJoCo: mujoco.batch.Batch of the nominal model with random controls; no outputs, no resets, same threads
dm_control: its own environment in one process, resets included
in processes: {processes} dm_control environments, each in a process of its own under gymnasium's AsyncVectorEnv
EnvPool: {envpool_environments} environments on {threads} threads, its own version of MuJoCo, no randomization"""


def add_sim_arguments(commands: Any) -> None:
    """Add the command ``sim`` and its options."""
    parser = commands.add_parser(
        "sim",
        help="control steps per second of simulated environments",
        description="Measure control steps per second of simulated environments, and their memory.",
    )
    for field in dataclasses.fields(BenchmarkSettings):
        _add_option(parser, field, getattr(BenchmarkSettings(), field.name))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=run_sim)


def run_sim(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure task after task, print the table, and return all that was measured."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(BenchmarkSettings)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    settings = config_from_dict(BenchmarkSettings, plain, "command line")
    tasks = {}
    with tqdm(total=count_work(settings) * len(settings.tasks), disable=arguments.quiet, file=sys.stderr) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        for task in settings.tasks:
            tasks[task] = measure_task(task, settings, progress)
    print(describe(settings, tasks))
    resolved = config_to_dict(settings)
    del resolved["envpool_python"]  # where it lies on this machine is nobody else's business
    return {"settings": resolved, "tasks": tasks}


def describe(settings: BenchmarkSettings, tasks: dict[str, dict[str, Any]]) -> str:
    """Return the results as two tables, with what each column is below them."""
    titles = [_TITLES[name] for name in settings.methods]
    speeds = [["control steps per second", *titles] + ["memory per environment"] * bool(settings.memory_environments)]
    others = [name for name in settings.methods if name != "ours"] if "ours" in settings.methods else []
    ratios = [["ratio of ours to", *(_TITLES[name] for name in others)]]
    for task, result in tasks.items():
        rates, unavailable = result["steps_per_s"], result["unavailable"]
        row = [unavailable.get(name) or _format_summary(rates[name], ",.0f") for name in settings.methods]
        if settings.memory_environments:
            row.append(f"{result['memory_bytes_per_environment'] / 1024:.1f} KiB")
        speeds.append([task, *row])
        ratios.append([task, *(unavailable.get(name) or _format_summary(result["ratio"][name], ".3g") for name in others)])
    notes = [note for note in _NOTES.format(**vars(settings)).splitlines() if note.split(":")[0] in titles]
    title = f"median of {settings.rounds} rounds [lowest, highest]"
    return "\n".join([title, "", *markdown_table(speeds), "", *(markdown_table(ratios) if others else []), "", *notes])


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], default: Any) -> None:
    """Add the option of one setting, with its default and unit in the help."""
    several = isinstance(default, tuple)
    unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
    shown = " ".join(default) if several else f"{default}{unit}"
    parser.add_argument(
        "--" + field.name.replace("_", "-"),
        type=type(default) if isinstance(default, int | float) else str,
        nargs="+" if several else None,
        default=str(default) if isinstance(default, Path) else default,
        metavar=field.name.removesuffix("s").upper() if several else None,
        help=f"{field.metadata['help']} (default: {shown})",
    )


def _format_summary(summary: dict[str, Any], form: str) -> str:
    """Return a median with its spread as text."""
    return f"{summary['median']:{form}} [{summary['low']:{form}}, {summary['high']:{form}}]"
