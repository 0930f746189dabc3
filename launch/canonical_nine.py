#!/usr/bin/env python
"""Walk images of digits along the denoiser's difference and along classifiers' derivatives, and let judges say what comes out."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from dpg_robot.learning.digits.experiment import (
    METHODS,
    STARTS,
    CanonicalNineSettings,
    count_work,
    measure_canonical_nine,
)
from dpg_robot.learning.digits.figure import draw_canonical_nine
from dpg_robot.learning.digits.images import CLASSES, load_mnist, load_scikit_digits

PACKAGES = ("dpg-robot", "torch", "scikit-learn", "numpy")
COLUMNS = {
    "confidence": "judge's confidence",
    "agreement": "judge agrees",
    "distance": "distance to real digit",
    "forest_confidence": "forest's confidence",
    "classifier_confidence": "classifier's own",
    "path_length": "path length",
}
NOTES = """\
Mean +- standard error over {repetitions} repetitions, each with its own split, networks, judges and start images.
judge's confidence: probability of the target class by a support vector machine trained on images that no network saw
judge agrees: share of walks where its first choice is the target class
distance to real digit: Euclidean, to the nearest held-out digit of the target class, pixels in [-1, 1]
forest's confidence: the same as the first column, by a random forest; classifier's own: by the plain classifier that is walked"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, CanonicalNineSettings, None)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random, 0 or more (default: %(default)s)")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER_OR_FILE",
                        help="use MNIST from here (idx, idx.gz or .npz), in place of scikit-learn's digits")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="threads that compute the networks (default: %(default)s)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the walks to FILE, a PNG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings, versions and all results to FILE too")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_intermixed_args()
    for name, least in (("seed", 0), ("threads", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be {least} or more, got {getattr(arguments, name)}")
    for path in (arguments.figure, arguments.json):
        if path is not None and not path.parent.is_dir():  # said now, not after minutes of work
            parser.error(f"the folder of {path} does not exist; make it first")
    try:
        carry_out(config_from_arguments(CanonicalNineSettings, arguments), arguments)
    except (DpgError, OSError) as error:
        parser.exit(1, f"canonical_nine: {error}\n")


def carry_out(settings: CanonicalNineSettings, arguments: argparse.Namespace) -> None:
    """Measure, print, draw and write."""
    torch.set_num_threads(arguments.threads)
    images = load_mnist(arguments.mnist) if arguments.mnist else load_scikit_digits()
    started, started_cpu = time.monotonic(), time.process_time()
    with tqdm(total=count_work(settings), disable=arguments.quiet, file=sys.stderr) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        result = measure_canonical_nine(images, settings, arguments.seed, progress)
    print(describe(result.measured, settings))
    if arguments.figure:
        draw_canonical_nine(result.rows, arguments.figure)
    if arguments.json:
        facts = {
            "command": "canonical_nine",
            "seed": arguments.seed,
            "settings": config_to_dict(settings),
            "data": {"name": "MNIST" if arguments.mnist else "scikit-learn digits", "images": len(images), "side": images.side},
            "seconds": round(time.monotonic() - started, 1),
            "processor_seconds": round(time.process_time() - started_cpu, 1),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        }
        write_atomically(arguments.json, json.dumps(facts | result.measured, indent=1).encode())


def describe(measured: dict[str, Any], settings: CanonicalNineSettings) -> str:
    """Return the results as Markdown tables, with what each column is below them."""
    lines = []
    reference = measured["reference"]
    for kind, title in STARTS.items():
        lines += [f"starting from {title}", "", table_row(["", *COLUMNS.values()]), "|---" * (1 + len(COLUMNS)) + "|"]
        for method, values in measured["starts"][kind].items():
            lines.append(table_row([METHODS.get(method, method), *(format_summary(values[name]) for name in COLUMNS)]))
        real = [format_summary(reference[name]) if name in reference else "" for name in COLUMNS]
        lines += [table_row(["real digits of the class", *real]), ""]
        lines += ["confidence by class", "", table_row(["", *map(str, range(CLASSES))]), "|---" * (1 + CLASSES) + "|"]
        for method, values in measured["starts"][kind].items():
            by_class = values["confidence"]["per_class"]
            cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in zip(*by_class.values(), strict=True)]
            lines.append(table_row([METHODS.get(method, method), *cells]))
        steps = [f"{METHODS[method]}: {', '.join(f'{step:g}' for step in values['step'])}"
                 for method, values in measured["starts"][kind].items() if "step" in values]  # fmt: skip
        lines += ["", "step sizes chosen: " + "; ".join(steps), ""]
    accuracies = ("judge", "forest", "classifier")
    stated = ", ".join(f"{name} {format_summary(reference[f'{name}_accuracy'])}" for name in accuracies)
    return "\n".join([*lines, f"accuracy on real digits that were not trained on: {stated}", "", NOTES.format(**vars(settings))])


def table_row(cells: list[str]) -> str:
    """Return one row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def format_summary(summary: dict[str, Any]) -> str:
    """Return a mean with its standard error as text."""
    return f"{summary['mean']:.3f} +- {summary['standard_error']:.3f}"


if __name__ == "__main__":
    main()
