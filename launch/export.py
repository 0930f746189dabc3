#!/usr/bin/env python
"""Export a trained policy to policy.onnx and prove that it computes what the trained networks compute."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.trainer import best_checkpoint, load_learner


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain"), help="run folder, whose best checkpoint is exported")
    parser.add_argument("--checkpoint", type=Path, help="export this checkpoint instead")
    parser.add_argument("--output", type=Path, help="where to write (default: policy.onnx in the run folder)")
    parser.add_argument("--parity-samples", type=int, default=10_000, help="random measurements (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE too")
    arguments = parser.parse_args()
    try:
        checkpoint = arguments.checkpoint or best_checkpoint(arguments.run)
        learner, _, state = load_learner(checkpoint)
        output = arguments.output or arguments.run / "policy.onnx"
        training = {"updates": int(learner.updates), "evaluation": (state.get("evaluations") or [None])[-1]}
        report = export_policy(
            learner.policy, learner.contract, output, training=training, parity_samples=arguments.parity_samples
        )
        if arguments.json:
            write_atomically(arguments.json, json.dumps(dataclasses.asdict(report), indent=1).encode())
    except (DpgError, OSError) as error:
        parser.exit(1, f"export: {error}\n")
    print(f"{report.path}: policy {report.policy_id}, {report.bytes} bytes")
    print(
        f"parity with torch on {report.parity_samples} random measurements: "
        f"max error {report.max_action_error:.2g} (action), {report.max_command_error:.2g} (command, share of half its range), "
        f"{report.max_history_error:.2g} (history)"
    )


if __name__ == "__main__":
    main()
