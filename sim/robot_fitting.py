"""Fitting simulations to robots again and again while their logs grow, beside whatever else the program does."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from dpg_robot.config import config_to_dict, setting
from dpg_robot.data.robot_log import load_newest_transitions
from dpg_robot.errors import DpgError, LogError
from dpg_robot.files import write_atomically
from sim.fitted_simulation import FittedDynamics
from sim.identification import IdentificationSettings, identify
from sim.randomization import resolve_randomization


@dataclass(frozen=True)
class FittingConfig:
    """Settings of fitting simulations to robots."""

    prior: str = setting("wide", "what a robot may be: a preset's name or a YAML file; nothing outside of it is found")
    every: int = setting(15_000, "new transitions of a robot after which it is fitted again; 0: never", unit="transitions")
    first_after: int = setting(6_000, "transitions of a robot before it is fitted for the first time", unit="transitions")
    newest: int = setting(15_000, "newest transitions of a robot that are fitted", unit="transitions")
    seed: int = setting(0, "seed of the method")
    identification: IdentificationSettings = setting(lambda: IdentificationSettings(windows=48, particles=64), "the method")

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every must be 0 or more, got {self.every}")
        for name in ("first_after", "newest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more transitions, got {getattr(self, name)}")

    def due(self, transitions: int, fitted_at: int | None) -> bool:
        """Return whether a robot should be fitted now.

        Args:
            transitions: of the robot so far.
            fitted_at: how many there were at its last fit; None before the first.
        """
        if not self.every:
            return False
        return transitions >= self.first_after if fitted_at is None else transitions >= fitted_at + self.every


def fit_robot(log: Path, task: str, config: FittingConfig, transitions: int, target: Path) -> None:
    """Fit a simulation to the newest transitions of a robot.

    Args:
        log: log folder of the robot.
        task: the task, or a reference to one's own.
        config: settings.
        transitions: of the robot so far, to be written down.
        target: path without ending; gets the fitted ranges as ``.yaml``, a randomization, and all that was found as ``.json``.

    Raises:
        DpgError: a log of which nothing can be told, or a prior that does not fit the model.
    """
    newest, contract = load_newest_transitions(log, config.newest, on_damage="skip")
    prior = resolve_randomization(config.prior, contract.task)
    posterior = identify(newest, contract, task, config.prior, config.identification, config.seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    posterior.write(_file(target, "yaml"), f"fine-tuning, from {log}")
    found = posterior.to_dict() | {"fitted_at": transitions, "prior": config_to_dict(prior), "report": posterior.report()}
    write_atomically(_file(target, "json"), (json.dumps(found, indent=1) + "\n").encode())


class RobotFitting:
    """Fits one robot after the other in a process of its own, whenever a robot has enough new transitions.

    Fits of earlier runs of the program, with the same prior, are taken up again.

    Args:
        log: log folder of one robot, or a store of several, ``<robot>/<run>``.
        task: the task, or a reference to one's own.
        config: settings.
        folder: gets ``<robot>.yaml`` and ``<robot>.json``.

    Attributes:
        faults: why the last fit of a robot failed, by robot.
    """

    def __init__(self, log: Path, task: str, config: FittingConfig, folder: Path) -> None:
        self.faults: dict[str, str] = {}
        self._log, self._task, self._config, self._folder = log, task, config, folder
        self._fitted_at: dict[str, int] = {}
        self._running: tuple[str, int, BaseProcess] | None = None

    def earlier(self) -> dict[str, FittedDynamics]:
        """Return the fits that are in the folder already, by robot."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                dynamics, self._fitted_at[path.stem] = self._read(path)
                found[path.stem] = dynamics
            except (LogError, OSError) as error:
                self.faults[path.stem] = str(error)
        return found

    def poll(self, robots: Mapping[str, int]) -> dict[str, FittedDynamics]:
        """Begin a fit where one is due and none is under way; return those that have ended since the last call, by robot.

        Args:
            robots: transitions of each robot so far, by name; a robot without a folder of its own is the whole log.
        """
        found = self._ended()
        if self._running is None:
            for robot, transitions in robots.items():
                if self._config.due(transitions, self._fitted_at.get(robot)):
                    self._begin(robot, transitions)
                    break
        return found

    def close(self) -> None:
        """Give up a fit that is under way; it is due again at the next start."""
        if self._running is not None:
            self._running[2].terminate()
            self._running[2].join()
            self._running = None

    def _begin(self, robot: str, transitions: int) -> None:
        log = self._log / robot if (self._log / robot).is_dir() else self._log
        context = multiprocessing.get_context("spawn")  # threads of a parent would be lost in a fork
        process = context.Process(
            target=_fit_in_process, args=(log, self._task, self._config, transitions, self._folder / robot), daemon=True
        )
        process.start()
        self._running = (robot, transitions, process)

    def _ended(self) -> dict[str, FittedDynamics]:
        if self._running is None or self._running[2].is_alive():
            return {}
        robot, transitions, process = self._running
        self._running = None
        process.join()
        self._fitted_at[robot] = transitions
        self.faults.pop(robot, None)
        try:
            if process.exitcode:
                failure = self._folder / f"{robot}.failure"
                raise LogError(failure.read_text() if failure.exists() else f"its process ended with {process.exitcode}")
            return {robot: self._read(self._folder / f"{robot}.json")[0]}
        except (OSError, LogError) as error:
            self.faults[robot] = str(error)
            return {}

    def _read(self, path: Path) -> tuple[FittedDynamics, int]:
        """Return a fit and how many transitions of the robot there were then."""
        try:
            values = json.loads(path.read_text())
            prior = resolve_randomization(self._config.prior, values["task"])
            if values["prior"] != json.loads(json.dumps(config_to_dict(prior))):
                raise LogError(f"{path} is a fit within other ranges than {self._config.prior}; the robot is fitted anew")
            samples = np.array(values["samples"], dtype=np.float64)
            return FittedDynamics(prior, tuple(values["sample_names"]), samples), int(values["fitted_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise LogError(f"{path} does not hold a fit ({error!r}); the robot is fitted anew") from error


def _file(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.name}.{ending}")


def _fit_in_process(log: Path, task: str, config: FittingConfig, transitions: int, target: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which then ends this process
    failure = _file(target, "failure")
    failure.unlink(missing_ok=True)
    try:
        fit_robot(log, task, config, transitions, target)
    except (DpgError, OSError) as error:
        failure.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(failure, str(error).encode())
        raise SystemExit(1) from None
