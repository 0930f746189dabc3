"""Foreign MCAP files in JSON, protobuf and ROS 2's CDR: fields by path, a grid without a look into the future, and gaps."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import Writer

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.episode_source import read_all
from dpg_robot.data.mapping import ActionColumn, DatasetMapping, ObservationColumn, Resampling
from dpg_robot.data.mcap_source import McapSource
from dpg_robot.errors import UnknownNameError

pytest.importorskip("mcap_protobuf")
pytest.importorskip("mcap_ros2")

MAPPING = DatasetMapping(
    task="drive",
    observations=(ObservationColumn("/odom.x"),),
    actions=(ActionColumn("/cmd.v"),),
    rate_hz=10.0,
)


def write_json(path, **topics):
    """Write messages in JSON; each topic a list of (time in seconds, message)."""
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("anything", "jsonschema", b"{}")
        for topic, messages in topics.items():
            channel = writer.register_channel(f"/{topic}", "json", schema)
            for time_s, message in messages:
                time_ns = round(time_s * 1e9)
                writer.add_message(channel, time_ns, json.dumps(message).encode(), time_ns)
        writer.finish()
    return path


def drive(path, times=None, commands=None, count=21):
    times = np.arange(count) / 10 if times is None else times
    odom = [(time, {"x": float(index), "name": "base"}) for index, time in enumerate(times)]
    return write_json(path, odom=odom, cmd=[(t, {"v": v}) for t, v in (commands or [(0.0, 0.5), (1.0, -0.5), (2.0, 0.0)])])


def test_channels_are_held_on_the_grid(tmp_path):
    mapping = dataclasses.replace(MAPPING, resampling=Resampling(max_age_s=1.0))
    dataset, notes = read_all(McapSource(drive(tmp_path / "a.mcap"), mapping))
    (episode,) = dataset.episodes
    np.testing.assert_array_equal(episode.observations[:, 0], np.arange(21))
    np.testing.assert_array_equal(episode.actions[:, 0], [0.5] * 10 + [-0.5] * 10)
    assert (notes, episode.truncations[-1], dataset.contract.rate_hz) == ({}, True, 10.0)


@given(
    odom=st.lists(st.integers(0, 3000), min_size=2, max_size=30, unique=True),
    cmd=st.lists(st.integers(0, 3000), min_size=2, max_size=30, unique=True),
)
@settings(max_examples=40, deadline=None)
def test_no_value_comes_from_the_future_and_each_is_the_newest(odom, cmd):
    odom, cmd = sorted(odom), sorted(cmd)
    mapping = dataclasses.replace(MAPPING, resampling=Resampling(max_age_s=10.0, min_steps=1))
    with tempfile.TemporaryDirectory() as folder:
        path = write_json(
            Path(folder) / "a.mcap",
            odom=[(t / 1000, {"x": t}) for t in odom],
            cmd=[(t / 1000, {"v": t / 3000}) for t in cmd],
        )
        try:
            (found,) = McapSource(path, mapping).read_part(0)
        except DatasetError as error:
            assert "less than two steps" in str(error)  # noqa: PT017
            return
    for time_s, seen in zip(found.times_s, found.episode.observations[:, 0], strict=True):
        assert seen == max(t for t in odom if t <= time_s * 1000 + 1e-6)
    for time_s, done in zip(found.times_s, found.episode.actions[:, 0], strict=False):
        assert done == pytest.approx(max(t for t in cmd if t <= time_s * 1000 + 1e-6) / 3000, abs=1e-6)


def test_commands_that_follow_their_measurement_are_taken_a_little_later(tmp_path):
    commands = [(0.0, 0.0)] + [(step / 10 + 0.02, (step % 5) / 10) for step in range(21)]
    path = drive(tmp_path / "a.mcap", commands=commands)
    at_the_tick = McapSource(path, MAPPING).read_part(0)[0].episode.actions[:, 0]
    later = dataclasses.replace(MAPPING, resampling=Resampling(action_delay_s=0.05))
    after = McapSource(path, later).read_part(0)[0].episode.actions[:, 0]
    np.testing.assert_array_equal(at_the_tick[1:], after[:-1])
    np.testing.assert_allclose(after[:5], [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_a_gap_is_refused_with_its_place_or_cuts_the_episode(tmp_path):
    times = [*np.arange(10) / 10, *(2.0 + np.arange(10) / 10)]
    commands = [(t / 10, 0.0) for t in range(30)]
    path = drive(tmp_path / "a.mcap", times=times, commands=commands)
    with pytest.raises(DatasetError, match=r"/odom.x has a gap: no message for 0.\d+ s at 1.\d+ s, 0.3 s is allowed.*gaps: cut"):
        read_all(McapSource(path, dataclasses.replace(MAPPING, resampling=Resampling(max_age_s=0.3))))
    cut = dataclasses.replace(MAPPING, resampling=Resampling(max_age_s=0.3, gaps="cut"))
    dataset, _ = read_all(McapSource(path, cut))
    assert len(dataset.episodes) == 2
    assert all(episode.truncations[-1] for episode in dataset.episodes)
    assert dataset.episodes[0].observations[-1, 0] == 9
    np.testing.assert_array_equal(dataset.episodes[1].observations[:, 0], np.arange(10, 20))


def test_rewards_and_ends_are_those_at_the_end_of_a_step(tmp_path):
    score = [(t / 10, {"reward": float(t), "fallen": t == 12}) for t in range(21)]
    odom = [(t / 10, {"x": float(t)}) for t in range(21)]
    path = write_json(tmp_path / "a.mcap", odom=odom, cmd=[(t / 10, {"v": 0.0}) for t in range(21)], score=score)
    mapping = dataclasses.replace(MAPPING, reward="/score.reward", terminal="/score.fallen")
    dataset, _ = read_all(McapSource(path, mapping))
    first, second = dataset.episodes
    assert first.rewards.tolist() == list(range(1, 13))
    assert (first.observations[-1, 0], bool(first.terminations[-1])) == (12.0, True)
    assert (second.observations[0, 0], len(second), bool(second.truncations[-1])) == (12.0, 8, True)


def test_protobuf_and_ros_2_messages_are_read_by_the_path_of_a_field(tmp_path):
    from google.protobuf.wrappers_pb2 import DoubleValue
    from mcap_protobuf.writer import Writer as ProtobufWriter
    from mcap_ros2.writer import Writer as Ros2Writer

    with (tmp_path / "proto.mcap").open("wb") as file, ProtobufWriter(file) as writer:
        for step in range(11):
            for topic, value in (("/odom", step), ("/cmd", step / 20)):
                writer.write_message(topic, DoubleValue(value=value), step * 100_000_000, step * 100_000_000)
    mapping = DatasetMapping("t", (ObservationColumn("/odom.value"),), (ActionColumn("/cmd.value"),), rate_hz=10.0)
    dataset, _ = read_all(McapSource(tmp_path / "proto.mcap", mapping))
    np.testing.assert_array_equal(dataset.episodes[0].observations[:, 0], np.arange(11))

    with (tmp_path / "ros.mcap").open("wb") as file:
        writer = Ros2Writer(file)
        joints = writer.register_msgdef(
            "demo/msg/Joints", "string[] name\nfloat64[] position\ndemo/Pose pose\n" + "=" * 80 + "\nMSG: demo/Pose\nfloat64 x\n"
        )
        for step in range(11):
            message = {"name": ["a", "b"], "position": [float(step), step / 20], "pose": {"x": 2.0 * step}}
            writer.write_message("/arm/joints", joints, message, step * 100_000_000, step * 100_000_000)
        writer.finish()
    mapping = DatasetMapping(
        "t",
        (ObservationColumn("/arm/joints.position"), ObservationColumn("/arm/joints.pose.x")),
        (ActionColumn("/arm/joints.position[1]"),),
        rate_hz=10.0,
    )
    dataset, _ = read_all(McapSource(tmp_path / "ros.mcap", mapping))
    np.testing.assert_allclose(dataset.episodes[0].observations[3], [3.0, 0.15, 6.0], atol=1e-6)
    np.testing.assert_allclose(dataset.episodes[0].actions[:, 0], np.arange(10) / 20, atol=1e-6)
    wrong = dataclasses.replace(mapping, actions=(ActionColumn("/arm/joints.position[2]"),))
    with pytest.raises(DatasetError, match=r"has no element \[2\]"):
        McapSource(tmp_path / "ros.mcap", wrong)


@pytest.mark.parametrize(
    ("column", "error", "expected"),
    [
        ("/odm.x", UnknownNameError, r"'/odm'; known: /cmd, /odom. Did you mean '/odom'\?"),
        ("/odom.y", UnknownNameError, "unknown field of /odom.y .* known: name, x"),
        ("/odom.__class__", DatasetError, "must be a topic and a field"),
        ("/odom.name", DatasetError, "is no number"),
        ("/odom.x[0]", DatasetError, r"has no element \[0\]"),
        ("/odom.x..y", DatasetError, "must be a topic and a field"),
    ],
)
def test_what_a_mapping_cannot_mean_is_refused(tmp_path, column, error, expected):
    mapping = dataclasses.replace(MAPPING, observations=(ObservationColumn(column),))
    with pytest.raises(error, match=expected):
        McapSource(drive(tmp_path / "a.mcap"), mapping)


def test_a_mapping_without_a_rate_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="say in the mapping with rate_hz"):
        McapSource(drive(tmp_path / "a.mcap"), dataclasses.replace(MAPPING, rate_hz=None))


def test_channels_that_share_no_time_are_refused(tmp_path):
    path = drive(tmp_path / "a.mcap", commands=[(100.0, 0.0), (101.0, 0.0)])
    with pytest.raises(DatasetError, match="less than two steps"):
        read_all(McapSource(path, MAPPING))


def test_a_cut_off_file_is_refused_with_what_to_do(tmp_path):
    path = drive(tmp_path / "a.mcap")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DatasetError, match="can be mended with 'mcap recover'"):
        McapSource(path, MAPPING)


def test_messages_that_are_not_what_they_say_are_refused(tmp_path):
    path = tmp_path / "a.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channel = writer.register_channel("/odom", "json", 0)
        writer.add_message(channel, 0, b"\x80\x04cos\nsystem\n.", 0)
        writer.finish()
    with pytest.raises(DatasetError, match="cannot be read as MCAP"):
        McapSource(path, dataclasses.replace(MAPPING, actions=(ActionColumn("/odom.v"),)))
