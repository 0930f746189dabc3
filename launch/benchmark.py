#!/usr/bin/env python
"""Measure ours beside what others offer for the same work: simulation, learning, gradients, servo buses, the loop, logs."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

from dpg_robot.data.benchmarks.log_command import add_log_arguments
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from dpg_robot.host.benchmarks.throughput_command import add_throughput_arguments
from dpg_robot.shipping.benchmarks.ship_command import add_ship_arguments
from hw_drivers.benchmarks.bus_command import add_bus_arguments
from hw_drivers.benchmarks.faults_command import add_fault_arguments
from hw_drivers.benchmarks.loop_command import add_loop_arguments
from sim.benchmarks.finetune_command import add_finetune_arguments
from sim.benchmarks.gradient_command import add_gradient_arguments
from sim.benchmarks.identification_command import add_identification_arguments
from sim.benchmarks.learning_command import add_learn_arguments
from sim.benchmarks.loop_policy import write_untrained_policies
from sim.benchmarks.machine import machine_facts
from sim.benchmarks.offline_command import add_offline_arguments
from sim.benchmarks.offline_start_command import add_offline_start_arguments
from sim.benchmarks.simulation_command import add_sim_arguments
from sim.benchmarks.speed_command import add_speed_arguments
from sim.benchmarks.transfer_command import add_transfer_arguments

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "benchmark"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    add_sim_arguments(commands)
    add_learn_arguments(commands, CONFIGS / "learn.yaml")
    add_gradient_arguments(commands, CONFIGS / "gradient.yaml")
    add_offline_arguments(commands)
    add_offline_start_arguments(commands)
    add_finetune_arguments(commands)
    add_identification_arguments(commands)
    add_throughput_arguments(commands)
    add_speed_arguments(commands)
    add_bus_arguments(commands)
    add_fault_arguments(commands, Path(__file__).resolve().parent)
    add_loop_arguments(commands, Path(__file__).resolve().parent, write_untrained_policies)
    add_log_arguments(commands)
    add_ship_arguments(commands, Path(__file__).resolve().parent)
    add_transfer_arguments(commands, Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent / "configs")
    arguments = parser.parse_args()
    try:
        result = arguments.run(arguments)
        if arguments.json:
            whole = {"command": arguments.command, "time": datetime.now(UTC).isoformat(), "machine": machine_facts(), **result}
            write_atomically(arguments.json, json.dumps(whole, indent=1).encode())
    except (DpgError, ValueError, OSError) as error:
        parser.exit(1, f"benchmark: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "benchmark: interrupted\n")
    if failed := result.get("failed"):
        parser.exit(1, f"benchmark: {len(failed)} runs failed: {'; '.join(failed)}\n")


if __name__ == "__main__":
    main()
