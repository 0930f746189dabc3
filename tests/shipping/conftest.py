"""Known records in a robot log, for the tests of shipping."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import find_runs, read_records, require_contiguous

DEADLINE_S = 20.0


def load(path):
    """Return a module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sample():
    """The module with the contract, the dtype and make_records."""
    return load(Path(__file__).parents[1] / "data" / "sample_records.py")


@pytest.fixture(scope="session")
def nats_site():
    """The module with servers, senders and receivers."""
    return load(Path(__file__).with_name("nats_site.py"))


@pytest.fixture
def site(nats_site, tmp_path, wait_until):
    """A server with keys of the host and of the robots arm and leg."""
    return nats_site.Site(tmp_path, wait_until)


@pytest.fixture
def write_run(sample):
    """Write a run of ``count`` records in segments of some 100 kB."""

    def write(folder, run="run", count=1000, **settings):
        with LogWriter(folder, run, sample.CONTRACT, segment_bytes=100_000, flush_interval_s=0.0, **settings) as writer:
            for first in range(0, count, 10):
                writer.append(sample.make_records(first, min(10, count - first)))
        return folder / run

    return write


@pytest.fixture
def wait_until():
    def wait(condition, deadline_s=DEADLINE_S):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, "it did not happen in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def assert_shipped(sample):
    """Every file of the log is in the store, byte for byte; every record once, in order."""

    def check(log, stored, count=None):
        segments = sorted(path.relative_to(log) for path in log.glob("*/segment-*.mcap"))
        assert segments
        assert segments == sorted(path.relative_to(stored) for path in stored.glob("*/segment-*.mcap"))
        for segment in segments:
            assert (stored / segment).read_bytes() == (log / segment).read_bytes(), segment
        if count is not None:
            for run in find_runs(stored):
                assert require_contiguous(run).runs[0].records == count
                assert np.concatenate(list(read_records(run))).tobytes() == sample.make_records(0, count).tobytes()

    return check
