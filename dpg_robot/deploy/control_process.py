"""The process around the control loop: it owns the robot, and ends with the robot stopped whoever ends first."""

from __future__ import annotations

import ctypes
import json
import logging
import signal
import sys
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from dpg_robot.data.ring import Ring
from dpg_robot.data.transition import tick_dtype
from dpg_robot.deploy.clock import request_real_time
from dpg_robot.deploy.control_block import ControlBlock
from dpg_robot.deploy.control_loop import ControlLoop
from dpg_robot.deploy.loop_report import LoopReport
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.policy_updates import PolicyUpdates, receive_offers
from dpg_robot.deploy.run_config import RunSettings
from dpg_robot.deploy.safety import Safety
from dpg_robot.errors import DpgError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


@dataclass(frozen=True)
class ControlArguments:
    """What the control process needs to know; plain data.

    Attributes:
        settings: the run.
        ring: name of the ring for the records.
        block: name of the control block.
        parent_pid: process id of the supervisor.
    """

    settings: RunSettings
    ring: str
    block: str
    parent_pid: int


def run_control_process(arguments: ControlArguments, results: Connection, offers: Connection) -> None:
    """Run the control loop and send its report, as JSON, into ``results``; exits with code 1 after a fault.

    New policies come through ``offers`` (see :mod:`dpg_robot.deploy.policy_updates`).

    The supervisor starts the process with stop signals blocked; they are taken from when they can be acted on.
    """
    name_process("robot-control")
    _die_with_parent()
    logging.basicConfig(format="robot: %(message)s", level=logging.WARNING)
    robot = arguments.settings.robot
    dtype = tick_dtype(len(robot.measurements), len(robot.commands))
    with closing(ControlBlock.attach(arguments.block)) as block, Ring.attach(arguments.ring, dtype) as ring:
        ring.register_producer()
        try:
            report = _run_loop(arguments, ring, block, offers)
        except DpgError as error:
            report = LoopReport(reason=str(error))
        except BaseException as error:
            report = LoopReport(reason=f"{type(error).__name__}: {error}", error=error)
        finally:
            ring.finish()
    if report.error is not None:
        traceback.print_exception(report.error)
    with suppress(OSError):  # the supervisor may be gone
        results.send_bytes(json.dumps(report.to_dict()).encode())
    sys.exit(1 if report.fault else 0)


def _run_loop(arguments: ControlArguments, ring: Ring, block: ControlBlock, offers: Connection) -> LoopReport:
    settings = arguments.settings
    session = PolicySession.load(settings.policy)
    settings.robot.require_fit(session.contract, settings.policy)
    robot, homing = settings.robot.make(session.contract)
    safety = Safety(settings.robot.safety, session.contract)
    grants = request_real_time(settings.robot.real_time_priority)
    policies = PolicyUpdates(session, settings.robot.updates)
    loop = ControlLoop(robot, homing, policies, safety, ring, block, settings, parent_pid=arguments.parent_pid)
    loop.report.grants = grants
    receive_offers(offers, policies)
    _stop_on_signals(loop)
    return loop.run()


def _stop_on_signals(loop: ControlLoop) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: loop.stop(f"stopped by {signal.Signals(number).name}"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def name_process(name: str) -> None:
    """Give this process a name of up to 15 letters in ``ps`` and ``top``, where the system can."""
    with suppress(AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _die_with_parent() -> None:
    """Let the kernel send SIGTERM when the supervisor dies, so that not even SIGKILL leaves the robot moving on its own."""
    with suppress(AttributeError):  # Linux only; elsewhere the loop notices the changed parent at its next tick
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
