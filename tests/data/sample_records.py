"""Records that are a known function of their sequence number, so that any of them can be checked by itself."""

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype

CONTRACT = Contract(
    task="two-joints",
    measurements=tuple(MeasurementChannel(name, unit) for name, unit in (("hip", "rad"), ("knee", "rad"), ("hip_rate", "rad/s"))),
    features=(Feature("cos", "hip"), Feature("sin", "hip"), Feature("identity", "hip_rate")),
    commands=(CommandChannel("hip", "N m", -2.0, 2.0), CommandChannel("knee", "N m", -1.0, 1.0)),
    rate_hz=100.0,
)
DTYPE = tick_dtype(CONTRACT.num_measurements, CONTRACT.num_actions)
EPISODE_RECORDS = 51  # 50 steps and the closing record
ENDS = np.array([EpisodeEnd.TIMEOUT, EpisodeEnd.TERMINAL, EpisodeEnd.ABORTED])


def make_records(first: int, count: int) -> NDArray[np.void]:
    """Return (count,) records with sequence numbers from ``first``."""
    sequence = np.arange(first, first + count)
    records = np.zeros(count, dtype=DTYPE)
    records["sequence"] = sequence
    records["period"] = 1000 + sequence
    records["episode"] = sequence // EPISODE_RECORDS
    records["step"] = sequence % EPISODE_RECORDS
    records["state"] = LoopState.RUNNING
    closing = records["step"] == EPISODE_RECORDS - 1
    records["episode_end"] = np.where(closing, ENDS[records["episode"] % 3], EpisodeEnd.NOT_ENDED)
    records["safety"] = sequence % 7
    records["device_flags"] = 1
    records["policy"] = 0xFEDCBA9876543210
    records["time_ns"] = 5_000_000_000 + 10_000_000 * sequence
    records["wall_ns"] = 1_700_000_000_000_000_000 + 10_000_000 * sequence
    records["device_time_ns"] = -1
    records["wakeup_latency_ns"] = sequence % 1000
    records["compute_ns"] = 200_000 + sequence % 1000
    records["measurement"] = np.sin(sequence[:, None] * np.array([0.1, 0.2, 0.3]))
    records["measurement_time_ns"] = records["time_ns"][:, None] - np.arange(3)
    records["valid"] = True
    records["intended_action"] = np.cos(sequence[:, None] * np.array([0.1, 0.2]))
    records["action"] = 0.5 * records["intended_action"]
    records["command"] = CONTRACT.scale_action(records["action"])
    return records
