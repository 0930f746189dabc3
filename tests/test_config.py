"""Typed configuration: files, overrides, refusals that say where, and what the command line shows."""

import argparse
import math
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.config import (
    add_config_arguments,
    config_from_arguments,
    config_from_dict,
    config_to_dict,
    describe_settings,
    dump_config,
    load_config,
    setting,
)
from dpg_robot.errors import ConfigError


@dataclass(frozen=True)
class Arm:
    length: float = setting(0.5, "length of the arm", unit="m")
    limits: dict[str, float] = setting(dict, "limits by joint", unit="rad")

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise ValueError(f"length must be positive, got {self.length}")


@dataclass(frozen=True)
class Settings:
    seed: int = setting(0, "seed of everything random")
    rate: float = setting(50.0, "control steps", unit="1/s")
    enabled: bool = setting(True, "whether it moves")
    name: str = setting("left", "what it is called")
    mode: Literal["on", "off", "slow"] = setting("slow", "how it moves")
    sizes: tuple[int, ...] = setting((64, 64), "sizes of layers")
    range: tuple[float, float] = setting((-1.0, 1.0), "range", unit="rad")
    log: Path | None = setting(None, "where to log")
    limit: int | None = setting(None, "most steps")
    arm: Arm = setting(Arm, "the arm")
    spare: Arm = setting(Arm, "the other arm")


@dataclass(frozen=True)
class Required:
    port: str = field()
    baud: int = setting(115_200, "speed", unit="bit/s")


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="robot.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def refusal(path=None, overrides=(), cls=Settings):
    """Return the message with which settings are refused; any other exception fails the test."""
    with pytest.raises(ConfigError) as caught:
        load_config(cls, path, overrides)
    return str(caught.value)


def test_a_file_changes_only_what_stands_in_it(write):
    loaded = load_config(Settings, write("rate: 100\narm: {length: 0.7}\nsizes: [8]\nlog: runs/a\n"))
    assert loaded == Settings(rate=100.0, arm=Arm(length=0.7), sizes=(8,), log=Path("runs/a"))
    assert isinstance(loaded.rate, float)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n"])
def test_an_empty_file_gives_the_defaults(write, text):
    assert load_config(Settings, write(text)) == load_config(Settings) == Settings()


def test_an_unknown_key_is_refused_with_file_line_and_a_suggestion(write):
    path = write("seed: 1\narm:\n  length: 1.0\n  limts: {}\n")
    message = refusal(path)
    assert message.startswith(f"{path}:4: unknown key 'arm.limts'")
    assert "known: length, limits" in message
    assert "Did you mean 'limits'?" in message


@pytest.mark.parametrize("folder", ["defaults", "command line 1"])
def test_a_line_is_named_whatever_the_file_is_called(write, monkeypatch, folder):
    path = write("\n\nsed: 1\n", f"{folder}/robot.yaml")
    monkeypatch.chdir(path.parent.parent)
    assert refusal(Path(folder) / "robot.yaml").startswith(f"{folder}/robot.yaml:3: unknown key 'sed'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1.5", "seed must be an integer, got '1.5'"),
        ("seed: '3'", "seed must be an integer, got '3'"),
        ("seed: true", "seed must be an integer"),
        ("seed: [1]", "seed must be an integer, got a list"),
        ("seed: 010", "seed must be an integer in plain digits, got '010'"),
        ("seed: 1:30", "seed must be an integer in plain digits, got '1:30'"),
        ("rate: fast", "rate must be a number, got 'fast'"),
        ("rate: true", "rate must be a number"),
        ("rate: .nan", "rate must be a number"),
        ("rate: nan", "rate must be a number"),
        ("rate:", "rate must be a number"),
        ("enabled: 1", "enabled must be true or false, got '1'"),
        ("name: null", "name must be a text"),
        ("name: {a: b}", "name must be a text, got a mapping"),
        ("mode: fast", "mode must be one of on, off, slow, got 'fast'"),
        ("mode: slwo", "Did you mean 'slow'?"),
        ("mode: [slow]", "mode must be one of on, off, slow, got a list"),
        ("mode: 2001-99-99", "mode must be one of on, off, slow"),
        ("sizes: 64", "sizes must be a list, got '64'"),
        ("sizes: [64, x]", "sizes[1] must be an integer, got 'x'"),
        ("range: [1, 2, 3]", "range must be a list of 2 values, got 3"),
        ("limit: many", "limit must be an integer, got 'many'"),
        ("arm: 3", "arm must be a mapping of settings, got '3'"),
        ("arm: {length: -1}", "arm: length must be positive, got -1.0"),
        ("arm: {limits: [1]}", "arm.limits must be a mapping, got a list"),
        ("arm: {limits: {elbow: stiff}}", "arm.limits.elbow must be a number, got 'stiff'"),
        ("arm: {limits: {elbow: 1, elbow: 2}}", "key 'arm.limits.elbow' stands twice"),
        ("arm: {limits: {[elbow]: 1}}", "a key of arm.limits must be a name, got a list"),
        ("[seed]: 1", "a key must be a name, got a list"),
        ("seed: 2\n\n", "key 'seed' stands twice"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(write, text, expected):
    path = write(f"# settings\n{'seed: 1' if 'twice' in expected else ''}\n{text}\n")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert expected in message


@pytest.mark.parametrize("text", ["- seed", "hello"])
@pytest.mark.parametrize("overrides", [(), ("seed=1",)])
def test_a_file_that_is_no_mapping_is_refused(write, text, overrides):
    path = write(text)
    assert refusal(path, overrides).startswith(f"{path}:1: the file must be a mapping of settings")


@pytest.mark.parametrize("content", [b"seed: [1", b"seed:\n\t- 1", b"\xff\xfe", b"a: \x00", b"seed: 1\n---\nseed: 2\n"])
def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_a_missing_file_is_refused_with_a_suggestion(write):
    path = write("seed: 1")
    assert refusal(path.with_name("robto.yaml")).endswith("does not exist. Did you mean 'robot.yaml'?")
    assert "cannot read" in refusal(path.parent)


def test_a_missing_required_key_is_named(write):
    assert "lacks required key(s): port" in refusal(write("baud: 9600"), cls=Required)
    assert "lacks required key(s): port" in refusal(cls=Required)
    assert load_config(Required, None, ["port=/dev/ttyACM0"]) == Required("/dev/ttyACM0")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1.e3", 1e3), ("-2E+2", -200.0), ("1_000", 1e3), (".inf", math.inf), ("-.inf", -math.inf)],
)
def test_numbers_may_be_written_as_engineers_write_them(text, value):
    assert load_config(Settings, None, [f"rate={text}"]).rate == value


@pytest.mark.parametrize("text", ["0x1F", "31", "0b11111", "+31", "3_1"])
def test_integers_may_be_written_in_other_bases(text):
    assert load_config(Settings, None, [f"seed={text}"]).seed == 31


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("true", True), ("ON", True), ("no", False), ("False", False)])
def test_switches_are_read_as_yaml_reads_them(text, value):
    assert load_config(Settings, None, [f"enabled={text}"]).enabled is value


@pytest.mark.parametrize("word", ["off", "on", "slow"])
def test_a_choice_that_yaml_takes_for_a_switch_needs_no_quotes(word):
    assert load_config(Settings, None, [f"mode={word}"]).mode == word
    assert load_config(Settings, None, [f"mode='{word}'"]).mode == word


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=7"], Settings(seed=7)),
        (["seed=1", "seed=2"], Settings(seed=2)),
        (["arm.length=2"], Settings(arm=Arm(length=2.0))),
        (["arm={length: 2}"], Settings(arm=Arm(length=2.0))),
        (["arm={length: 2}", "arm.limits.elbow=1"], Settings(arm=Arm(2.0, {"elbow": 1.0}))),
        (["sizes=[32, 16]"], Settings(sizes=(32, 16))),
        (["sizes=[]"], Settings(sizes=())),
        (["limit=5", "log=a/b"], Settings(limit=5, log=Path("a/b"))),
        (["limit=5", "limit=null"], Settings()),
        (["limit=5", "limit="], Settings()),
        (["name=a=b"], Settings(name="a=b")),
        (["name='a: b # c'"], Settings(name="a: b # c")),
        (['name=""'], Settings(name="")),
        (["name=12"], Settings(name="12")),
    ],
)
def test_overrides_replace_values_in_turn(overrides, expected):
    assert load_config(Settings, None, overrides) == expected


def test_overrides_win_over_the_file_and_leave_the_rest_of_it(write):
    path = write("seed: 1\nname: x\narm:\n  length: 3.0\n  limits: {a: 1}\n")
    assert load_config(Settings, path, ["arm.length=4", "seed=2"]) == Settings(seed=2, name="x", arm=Arm(4.0, {"a": 1.0}))


def test_an_override_does_not_reach_through_an_alias(write):
    path = write("arm: &both {length: 2.0}\nspare: *both\n")
    assert load_config(Settings, path, ["arm.length=3"]) == Settings(arm=Arm(3.0), spare=Arm(2.0))


def test_an_override_does_not_hide_a_key_that_stands_twice(write):
    path = write("arm: {length: 1}\narm: {length: 2}\n")
    assert "key 'arm' stands twice" in refusal(path, ["arm.length=3"])


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("seed", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("sede=1", "unknown key 'sede'"),
        ("sede=1", "Did you mean 'seed'?"),
        ("arm.lenght=1", "Did you mean 'length'?"),
        ("arm..length=1", "unknown key 'arm.'"),
        ("seed.x=1", "seed must be an integer, got a mapping"),
        ("seed=", "seed must be an integer"),
        ("sizes=1,2", "sizes must be a list"),
        ("name=[1", "not valid YAML"),
        ("arm.length=0", "length must be positive"),
    ],
)
def test_a_wrong_override_is_refused_by_what_was_typed(item, expected):
    message = refusal(overrides=[item])
    assert message.startswith(f"command line '{item}'")
    assert expected in message


def test_a_wrong_override_of_a_file_names_the_override_not_the_file(write):
    assert refusal(write("arm: {length: 1}"), ["arm.lenght=1"]).startswith("command line 'arm.lenght=1': unknown key")


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00")) | st.sampled_from(
    ["null", "~", "yes", "1e-3", "0x10", "1:30", "a: b", "- a", "#", "'", '"', "{}", "&a", "*a", "!t", "%d", "2001-01-01", " x "]
)
numbers = st.floats(allow_nan=False)
arms = st.builds(
    Arm, length=st.floats(min_value=0, exclude_min=True), limits=st.dictionaries(texts | st.just("<<"), numbers, max_size=3)
)
all_settings = st.builds(
    Settings,
    seed=st.integers(),
    rate=numbers,
    enabled=st.booleans(),
    name=texts,
    mode=st.sampled_from(["on", "off", "slow"]),
    sizes=st.lists(st.integers(), max_size=4).map(tuple),
    range=st.tuples(numbers, numbers),
    log=st.none() | st.text(string.ascii_letters + "/._- ~#:", min_size=1).map(Path),
    limit=st.none() | st.integers(),
    arm=arms,
    spare=arms,
)


@given(config=all_settings)
def test_what_was_dumped_loads_to_an_equal_configuration(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    dump_config(config, path)
    assert load_config(Settings, path) == config
    assert config_from_dict(Settings, config_to_dict(config), "a checkpoint") == config


def test_plain_values_from_elsewhere_are_checked_in_the_same_way():
    with pytest.raises(ConfigError, match=r"the checkpoint:\d+: unknown key 'sede'"):
        config_from_dict(Settings, {"sede": 1}, "the checkpoint")


def test_the_listing_shows_defaults_and_units_as_they_are_typed():
    lines = describe_settings(Settings)
    assert "rate=50.0 1/s  control steps" in lines
    assert "arm.length=0.5 m  length of the arm" in lines
    assert "sizes=[64, 64]  sizes of layers" in lines
    assert "log=null  where to log" in lines
    assert "enabled=true  whether it moves" in lines
    defaults = [line.partition("  ")[0].partition(" 1/s")[0].removesuffix(" m").removesuffix(" rad") for line in lines]
    assert load_config(Settings, None, defaults) == Settings()
    assert describe_settings(Required)[0].startswith("port=required")


@pytest.fixture
def parser(write):
    parser = argparse.ArgumentParser(prog="move")
    add_config_arguments(parser, Settings, write("seed: 3\n", "default.yaml"))
    return parser


def test_help_lists_every_setting_with_its_unit_and_default(parser, capsys):
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    for line in describe_settings(Settings):
        assert f"  {line}\n" in shown
    assert "default.yaml" in shown


def test_the_command_line_reads_the_default_file_or_another_one(parser, write):
    other = str(write("seed: 4", "other.yaml"))
    assert config_from_arguments(Settings, parser.parse_args([])) == Settings(seed=3)
    assert config_from_arguments(Settings, parser.parse_args(["name=x"])) == Settings(seed=3, name="x")
    assert config_from_arguments(Settings, parser.parse_args(["--config", other, "name=x"])) == Settings(seed=4, name="x")


def test_show_config_prints_what_would_be_used_and_leaves(parser, capsys, write):
    with pytest.raises(SystemExit) as left:
        config_from_arguments(Settings, parser.parse_args(["--show-config", "rate=1e-3", "arm.length=2"]))
    assert left.value.code == 0
    shown = write(capsys.readouterr().out, "shown.yaml")
    assert load_config(Settings, shown) == Settings(seed=3, rate=1e-3, arm=Arm(2.0))


def test_what_a_nested_default_says_holds_until_it_is_changed(write):
    @dataclass(frozen=True)
    class Robot:
        long: Arm = setting(lambda: Arm(length=2.0, limits={"elbow": 1.0}), "an arm that is longer")

    assert load_config(Robot).long == Arm(2.0, {"elbow": 1.0})
    assert load_config(Robot, write("long: {limits: {wrist: 2}}")).long == Arm(2.0, {"wrist": 2.0})
    assert load_config(Robot, overrides=["long.length=3"]).long == Arm(3.0, {"elbow": 1.0})
    assert "long.length=2.0 m  length of the arm" in describe_settings(Robot)
    with pytest.raises(ConfigError, match="length must be positive"):
        load_config(Robot, overrides=["long.length=0"])
