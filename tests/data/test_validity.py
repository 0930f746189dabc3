"""The validity report: it finds what was put in, says where, and is silent about what is in order."""

import json

import numpy as np
import pytest

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Episode
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.validity import examine, examine_log

UNITS = {"x": "m", "angle": "rad", "speed": "m/s", "joint_3": "unknown"}


class Source:
    """Three episodes of smooth motion, changed by a test."""

    name, settings = "push/test-v0", {}

    def __init__(self):
        self.contract = Contract(
            task="push",
            measurements=tuple(MeasurementChannel(name, unit) for name, unit in UNITS.items()),
            features=tuple(Feature("identity", name) for name in UNITS),
            commands=(CommandChannel("force", "N", -2.0, 2.0), CommandChannel("grip", "N", -1.0, 1.0)),
            rate_hz=10.0,
        )
        self.found = [self._make(number) for number in range(3)]

    @staticmethod
    def _make(number, length=100):
        random = np.random.default_rng(number)
        time = np.arange(length + 1)
        last = np.arange(length) == length - 1
        smooth = [np.sin(0.1 * time + number + channel) for channel in range(4)]
        episode = Episode(
            observations=(np.stack(smooth, axis=1) + 0.01 * random.normal(size=(length + 1, 4))).astype(np.float32),
            actions=random.uniform(-0.9, 0.9, (length, 2)).astype(np.float32),
            rewards=random.uniform(0, 1, length).astype(np.float32),
            terminations=last & (number == 0),
            truncations=last & (number != 0),
        )
        return FoundEpisode(f"episode {number}", episode, time / 10)

    def __len__(self):
        return len(self.found)

    def read_part(self, index):
        return [self.found[index]]


@pytest.fixture
def source():
    return Source()


def found(source, what):
    """Return the one finding of a kind."""
    matching = [finding for finding in examine(source).findings if finding.what == what]
    assert len(matching) == 1, examine(source)
    return matching[0]


def test_what_is_in_order_gives_no_warning(source):
    report = examine(source)
    assert (report.count("error"), report.count("warning")) == (0, 0), str(report)
    assert (report.episodes, report.transitions) == (3, 300)
    assert [finding.what for finding in report.findings] == ["rewards"]
    x = report.channels[0]
    values = np.concatenate([each.episode.observations[:, 0] for each in source.found]).astype(np.float64)
    np.testing.assert_allclose((x.mean, x.std, x.low, x.high), (values.mean(), values.std(), values.min(), values.max()))


def test_not_finite_values_are_errors_with_their_place(source):
    source.found[1].episode.observations[7, 2] = np.nan
    source.found[2].episode.rewards[3] = np.inf
    report = examine(source)
    texts = [str(finding) for finding in report.findings if finding.severity == "error"]
    assert "error: not finite: observation speed: 1 values are NaN or infinite, the first in episode 1, row 7" in texts
    assert "error: not finite: episode 2: 1 of 100 rewards" in texts


def test_a_jump_is_found_beyond_what_the_channel_does_by_itself(source):
    source.found[2].episode.observations[40:, 0] += 5.0
    finding = found(source, "jump")
    assert finding.where == "observation x"
    assert "the largest is 5" in finding.text or "the largest is 4.9" in finding.text
    assert "episode 2, row 40" in finding.text


def test_an_angle_that_wraps_is_no_jump_and_is_said_to_wrap(source):
    angle = (0.1 * np.arange(101) + np.pi) % (2 * np.pi) - np.pi
    source.found[0].episode.observations[:, 1] = angle
    finding = found(source, "angle wraps around")
    assert "let the policy see cos and sin" in finding.text


def test_degrees_millimetres_and_nameless_joints_are_suspected(source):
    source.found[0].episode.observations[:, 1] *= 57.3
    source.found[0].episode.observations[:, 3] *= 57.3
    source.found[1].episode.observations[:, 0] *= 1000
    report = examine(source)
    texts = {finding.where: finding.text for finding in report.findings if finding.what == "unit"}
    assert set(texts) == {"observation angle", "observation joint_3", "observation x"}
    assert "perhaps degrees" in texts["observation angle"]
    assert "perhaps millimetres" in texts["observation x"]


def test_saturated_and_dead_channels_are_found(source):
    for each in source.found:
        each.episode.actions[:60, 0] = 1.0
        each.episode.actions[:, 1] = 0.25
    finding = found(source, "saturated")
    assert (finding.severity, finding.where) == ("warning", "action force")
    assert "60.0 %" in finding.text
    assert found(source, "constant").where == "action grip"


def test_actions_beyond_the_limits_are_errors(source):
    source.found[0].episode.actions[0, 0] = 3.0
    assert found(source, "beyond limits").severity == "error"


def test_duplicates_gaps_in_time_and_missing_ends_are_found(source):
    first = source.found[0]
    source.found.append(FoundEpisode("episode 3", first.episode))
    source.found[1].times_s[50:] += 0.4
    source.found[2].episode.truncations[-1] = False
    assert "the same observations and actions as episode 0" in found(source, "duplicate").text
    gap = found(source, "gap in time")
    assert (gap.where, "step 49 takes 5.00 periods" in gap.text) == ("episode 1", True)
    assert found(source, "missing end").severity == "error"


def test_an_end_in_the_middle_constant_rewards_and_an_empty_set_are_found(source):
    source.found[1].episode.truncations[30] = True
    for each in source.found:
        each.episode.rewards[:] = 2.0
    assert "ends at row 30 of 100" in found(source, "end in the middle").text
    assert "each is 2" in found(source, "constant reward").text
    source.found.clear()
    assert found(source, "empty").severity == "error"


def test_errors_come_first_and_json_holds_no_nan(source):
    source.found[1].episode.observations[:, 2] = np.nan
    for each in (source.found[0], source.found[2]):
        each.episode.observations[:, 2] = np.nan
    report = examine(source)
    ranks = [("error", "warning", "note").index(finding.severity) for finding in report.findings]
    assert ranks == sorted(ranks)
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["findings"][0]["severity"] == "error"


def test_a_robot_log_is_reported_with_its_measurements_and_what_is_missing(tmp_path, sample):
    records = np.delete(sample.make_records(0, 153), 75)
    records["valid"][10] = False
    records["measurement"][:, 0] *= 57.3
    with LogWriter(tmp_path / "log", "run-a", sample.CONTRACT) as writer:
        writer.append(records)
    report = examine_log(tmp_path / "log")
    by_kind = {finding.what: finding for finding in report.findings}
    assert "sequences 75 to 75 are missing" in by_kind["gap or damage"].text
    assert by_kind["stale measurements or skipped periods"].where == "run run-a"
    assert by_kind["unit"].where == "measurement hip"
    assert [channel.kind for channel in report.channels] == ["measurement"] * 3 + ["action"] * 2
