"""The shipping program: the commands of the manual in real processes, and a short campaign of kills."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.data.benchmarks.synthetic_robot import synthetic_contract, synthetic_records
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.release import TrustedKey, read_release, read_released_policy
from dpg_robot.shipping.benchmarks.kill_campaign import verify

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


def command(*arguments, script="ship.py"):
    return [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)]


def run(*arguments, folder, script="ship.py"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}
    return subprocess.run(
        command(*arguments, script=script), cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )


@contextmanager
def running(*arguments, folder):
    """Run a command until it is told to end, which it must do in good order."""
    process = subprocess.Popen(command(*arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output + errors
    assert "Traceback" not in errors


@pytest.fixture
def log(tmp_path):
    rng = np.random.default_rng(0)
    with LogWriter(
        tmp_path / "log", "run-1", synthetic_contract(4, 100.0), segment_bytes=100_000, flush_interval_s=0.0
    ) as writer:
        for first in range(0, 1000, 10):
            writer.append(synthetic_records(first, 10, 4, rng))
    return tmp_path / "log"


@pytest.fixture(scope="module")
def ship():
    """The program, in this process."""
    spec = importlib.util.spec_from_file_location("ship", ROOT / "launch" / "ship.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(count):
    return {"pushed": count, "log_exit_code": 0}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_the_commands_of_the_manual_ship_a_log(tmp_path, log):
    port = free_port()
    server = ["--server", f"nats://127.0.0.1:{port}"]
    made = run("keys", "host", "arm1", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert [line.split()[0] for line in made.stdout.splitlines()] == ["host", "arm1"]
    with running("serve", f"serve.port={port}", folder=tmp_path) as serve:
        assert serve.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
        with running("receive", *server, "receive.min_free_bytes=0", folder=tmp_path):
            sent = run("send", "--robot", "arm1", "--log", "log", *server, "--key", "keys/arm1.seed", "--once", folder=tmp_path)
            assert sent.returncode == 0, sent.stderr
            assert verify(log, tmp_path / "store" / "arm1", recorded(1000)) == []
    status = json.loads(run("status", "store", folder=tmp_path).stdout)
    assert status["robots"]["arm1"] == {"run": "run-1", "last_confirmed_sequence": 999}
    assert json.loads(run("status", "log", folder=tmp_path).stdout)["backlog_bytes"] == 0


def test_a_release_comes_back_the_same_way(tmp_path, log):
    port = free_port()
    server = ["--server", f"nats://127.0.0.1:{port}"]
    assert run("keys", "host", "arm1", folder=tmp_path).returncode == 0
    assert run("key", "signing", folder=tmp_path, script="host.py").returncode == 0
    spec = importlib.util.spec_from_file_location("tiny_policy", ROOT / "tests" / "deploy" / "tiny_policy.py")
    tiny_policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_policy)
    policy = tiny_policy.write_policy(tmp_path / "policy.onnx")
    publish = ["publish", "--policy", policy, "--store", "models", "--sign", "signing"]
    assert run(*publish, folder=tmp_path, script="host.py").returncode == 0
    fetch = ["--releases", "releases", "--trust", "signing.pub"]
    with (
        running("serve", f"serve.port={port}", folder=tmp_path) as serve,
        running("receive", *server, "receive.min_free_bytes=0", "--releases", "models", folder=tmp_path),
    ):
        assert serve.stdout.readline() == f"listening on 127.0.0.1:{port}\n"
        with running("send", "--robot", "arm1", *server, "--key", "keys/arm1.seed", *fetch, folder=tmp_path):
            end_s = time.monotonic() + DEADLINE_S
            while not (tmp_path / "releases" / "release.json").exists():
                assert time.monotonic() < end_s
                time.sleep(0.02)
    release = read_release(tmp_path / "releases", [TrustedKey.load(tmp_path / "signing.pub")])
    assert read_released_policy(tmp_path / "releases", release)[0] == policy.read_bytes()


def test_a_log_is_shipped_to_a_folder_without_a_server(tmp_path, log):
    (tmp_path / "disk").mkdir()
    sent = run("send", "--robot", "arm1", "--to-folder", "disk", "--once", folder=tmp_path)
    assert (sent.returncode, sent.stderr) == (0, "")
    assert verify(log, tmp_path / "disk" / "arm1", recorded(1000)) == []


def test_a_sender_in_the_background_ends_in_good_order(tmp_path, log):
    (tmp_path / "disk").mkdir()
    with running("send", "--robot", "arm1", "--to-folder", "disk", folder=tmp_path):
        end_s = time.monotonic() + DEADLINE_S
        while len(list(tmp_path.glob("disk/arm1/*/*.seal.json"))) < len(list(log.glob("*/*.mcap"))):
            assert time.monotonic() < end_s
            time.sleep(0.02)
    assert json.loads((log / ".shipping" / "status.json").read_text())["state"] == "stopped"


def test_a_disk_over_its_limit_is_in_the_exit_code(tmp_path, log):
    (tmp_path / "disk").mkdir()
    sent = run("send", "--robot", "a", "--to-folder", "disk", "--once", "send.disk.limit_bytes=1000", folder=tmp_path)
    assert sent.returncode == 3
    assert "more than the limit of 1000" in sent.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["send", "--robot", "a/b", "--log", "log", "--to-folder", "disk"], "a robot's name has"),
        (["send", "--robot", "host", "--log", "log", "--to-folder", "disk"], "cannot be called 'host'"),
        (["send", "--robot", "a", "--log", "nowhere", "--to-folder", "disk"], "log folder nowhere does not exist"),
        (["send", "--robot", "a", "--log", "log", "--to-folder", "nowhere", "--once"], "mount the disk"),
        (["send", "--robot", "a", "--log", "log"], "which key"),
        (["send", "--robot", "a", "--log", "log", "--key", "no.seed"], "cannot read the key no.seed"),
        (["send", "--robot", "a", "--log", "log", "send.piece_byte=1"], "Did you mean 'piece_bytes'"),
        (["send", "--robot", "a", "--log", "log", "--releases", "r"], "nobody trusted has signed"),
        (["send", "--robot", "a", "--log", "log", "--trust", "no.pub"], "belong together"),
        (
            ["send", "--robot", "a", "--log", "log", "--releases", "r", "--trust", "no.pub", "--once"],
            "neither --to-folder nor --once",
        ),
        (["receive"], "make it with 'ship.py keys'"),
        (["serve"], "there is no public key host.pub"),
        (["serve", "--tls-cert", "x.pem"], "belong together"),
        (["keys", "../x"], "a robot's name has"),
        (["status", "log"], "has no status.json"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, log, ship, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert ship.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("ship: ")
    assert error.count("\n") == 1


def test_listening_to_other_machines_without_tls_is_refused(tmp_path):
    assert run("keys", "host", folder=tmp_path).returncode == 0
    done = run("serve", "serve.host=0.0.0.0", folder=tmp_path)
    assert done.returncode == 1
    assert "--tls-cert" in done.stderr


def test_a_short_campaign_of_kills_and_a_cut_loses_nothing(tmp_path):
    short = ["--seconds", "3", "--kills", "1", "--cut", "0.5", "--rate", "500", "--channels", "8"]
    tiny = ["--latency-seconds", "0.5", "--records", "500", "--rounds", "1"]
    done = run("ship", *short, *tiny, "--json", "ship.json", folder=tmp_path, script="benchmark.py")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "ship.json").read_text())
    assert result["kills"]["events"] == {"kill sender": 1, "kill server": 1, "kill receiver": 1, "cut": 1, "mend": 1}
    assert (result["kills"]["pushed"], result["kills"]["violations"]) == (1500, [])
    assert 0 < result["latency"]["p50"] <= result["latency"]["p99"] <= result["latency"]["max"]
    assert len(result["throughput"]["ours_per_s"]) == len(result["throughput"]["bare_per_s"]) == 1
    assert "0 violations" in done.stdout


def test_a_violation_is_found(tmp_path, log):
    (tmp_path / "disk").mkdir()
    assert run("send", "--robot", "a", "--to-folder", "disk", "--once", folder=tmp_path).returncode == 0
    stored = tmp_path / "disk" / "a"
    assert "1001 records were made, the store has 1000" in verify(log, stored, recorded(1001))[0]
    segment = stored / "run-1" / "segment-000001.mcap"
    content = segment.read_bytes()
    segment.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    assert "not the same" in verify(log, stored, recorded(1000))[0]
    segment.unlink()
    assert "segments" in verify(log, stored, recorded(1000))[0]
