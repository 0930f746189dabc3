"""The campaign: a robot records while sender, server and receiver are killed at random and the link is cut; what is lost?"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.robot_log import check_log, read_records
from dpg_robot.errors import LogError
from dpg_robot.shipping.benchmarks.cuttable_link import CuttableLink
from dpg_robot.shipping.benchmarks.site import ROBOT, Site, wait_for

VICTIMS = ("sender", "server", "receiver")
_RUN = "campaign"
_WATCHER_SHARE = 0.3  # of the server's deaths in which our program that watches it dies
_DRAIN_S = 180.0
_POLL_S = 0.02


@dataclass(frozen=True)
class Campaign:
    """What is done.

    Attributes:
        seed: of everything that is random.
        seconds: how long the robot records.
        rate_hz: records per second.
        channels: measurements in each record.
        kills: how often each process is killed.
        cut_s: how long the link is cut, seconds.
    """

    seed: int
    seconds: float
    rate_hz: float
    channels: int
    kills: int
    cut_s: float


def run_campaign(campaign: Campaign, folder: Path, program: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Carry out a campaign in an empty folder; returns what was counted, with ``violations``, which should be empty."""
    site = Site(folder, program)
    site.serve()
    link = CuttableLink(site.port)
    try:
        site.receive()
        site.send(link.port)
        recorder = _start_robot(campaign, site)
        done = _let_it_happen(campaign, site, link, recorder, progress)
        output, _ = recorder.communicate()
        recorded = json.loads(output)
        began_s = time.monotonic()
        progress("the robot has ended; waiting until everything is confirmed")
        violations = _drain(site)
        drained_s = time.monotonic() - began_s
    finally:
        site.stop()
        link.close()
    violations += verify(site.log, site.store / ROBOT, recorded)
    size = sum(path.stat().st_size for path in site.log.glob(f"*/{SEGMENT_PATTERN}"))
    return {"events": done, **recorded, "bytes": size, "drained_s": drained_s, "violations": violations}


def verify(log: Path, stored: Path, recorded: dict[str, int]) -> list[str]:
    """Return in words what is lost, there twice, out of order, or different."""
    violations = []
    names = [path.relative_to(log) for path in sorted(log.glob(f"*/{SEGMENT_PATTERN}"))]
    stored_names = [path.relative_to(stored) for path in sorted(stored.glob(f"*/{SEGMENT_PATTERN}"))]
    if names != stored_names:
        violations.append(f"the log has {len(names)} segments, the store {len(stored_names)}")
    for name in names:
        if not (stored / name).exists() or (stored / name).read_bytes() != (log / name).read_bytes():
            violations.append(f"{name} is not the same in log and store")
    violations += [f"problem: {problem}" for run in check_log(stored).runs for problem in run.problems]
    violations += [f"{run.duplicates} records are there twice" for run in check_log(stored).runs if run.duplicates]
    sequences = np.concatenate([records["sequence"] for records in read_records(stored, on_damage="skip")])
    if not np.array_equal(sequences, np.arange(recorded["pushed"])):
        violations.append(f"{recorded['pushed']} records were made, the store has {len(sequences)}, or in another order")
    if recorded["log_exit_code"]:
        violations.append(f"the log process ended with code {recorded['log_exit_code']}")
    return violations


def _start_robot(campaign: Campaign, site: Site) -> subprocess.Popen[bytes]:
    module = "dpg_robot.data.benchmarks.synthetic_robot"
    arguments = [site.log, _RUN, campaign.seconds, campaign.rate_hz, campaign.channels, campaign.seed]
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE)


def _plan(campaign: Campaign) -> list[tuple[float, str]]:
    """Return (time, event) in order; the same seed gives the same plan."""
    rng = random.Random(campaign.seed)
    events = [(rng.uniform(0.05, 0.95) * campaign.seconds, f"kill {victim}") for victim in VICTIMS for _ in range(campaign.kills)]
    if campaign.cut_s:
        cut_at_s = rng.uniform(0.1, 0.5) * campaign.seconds
        events += [(cut_at_s, "cut"), (cut_at_s + campaign.cut_s, "mend")]
    return sorted(events)


def _let_it_happen(
    campaign: Campaign, site: Site, link: CuttableLink, recorder: subprocess.Popen[bytes], progress: Callable[[str], None]
) -> dict[str, int]:
    """Carry out the plan while the robot records; returns how often each thing happened."""
    rng, done = random.Random(campaign.seed + 1), dict.fromkeys([*(f"kill {victim}" for victim in VICTIMS), "cut", "mend"], 0)
    wait_for(lambda: any(site.log.glob(f"*/{SEGMENT_PATTERN}")), "the robot's log")
    begin_s, plan = time.monotonic(), _plan(campaign)
    while plan or recorder.poll() is None:
        if plan and time.monotonic() - begin_s >= plan[0][0]:
            at_s, event = plan.pop(0)
            progress(f"{at_s:.1f} s: {event}")
            if event == "cut":
                link.is_cut.set()
            elif event == "mend":
                link.is_cut.clear()
            else:
                site.kill(event.removeprefix("kill "), program_of_server=rng.random() > _WATCHER_SHARE)
            done[event] += 1
        site.restart_ended()
        time.sleep(_POLL_S)
    return done


def _drain(site: Site) -> list[str]:
    def complete() -> bool:
        site.restart_ended()
        return site.is_complete()

    try:
        wait_for(complete, "the confirmation of everything", _DRAIN_S)
    except LogError as error:
        return [f"{error}; {site.last_words()}"]
    return []
