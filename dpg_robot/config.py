"""Typed configuration: dataclasses filled from YAML files and dotted command-line overrides, strictly.

A configuration is a frozen dataclass whose fields are made with :func:`setting`, so that each field is documented once, with its
unit. :func:`load_config` refuses unknown keys and wrong types with the file, the line and a 'did you mean'.
:func:`add_config_arguments` and :func:`config_from_arguments` put the same on a command line, and :func:`dump_config` writes the
resolved values beside a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

import yaml

from dpg_robot.errors import ConfigError, did_you_mean
from dpg_robot.files import write_atomically

T = TypeVar("T")

_YAML_INT, _YAML_BOOL, _YAML_NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "bool", "null"))
_DEFAULTS, _COMMAND_LINE = "defaults", "command line '"  # what errors name in place of a file and its line
_EXPECTED = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a path"}


def setting(default: Any, help: str, *, unit: str = "") -> Any:
    """Declare a dataclass field with a default, a one-line explanation and its unit.

    Args:
        default: the default value, or a callable that makes it (for nested configurations and other mutable values).
        help: one line that says what the field does.
        unit: the unit of the value, empty where it has none.
    """
    metadata = {"help": help, "unit": unit}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_config(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Build a configuration from its defaults, a YAML file and overrides, in that order.

    Args:
        cls: the dataclass to build.
        path: YAML file with any subset of the fields, or None for the defaults alone.
        overrides: items such as ``learner.batch_size=512``; the value is read as YAML.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or refused value; the message names file, line and key.
    """
    root = _compose_file(Path(path)) if path is not None else _empty_mapping(_DEFAULTS)
    if not isinstance(root, yaml.MappingNode):
        raise _refuse(root, "", "a mapping of settings")
    for item in overrides:
        _apply_override(root, item)
    return cast(T, _build(cls, root, key=""))


def config_from_dict(cls: type[T], values: dict[str, Any], source: str) -> T:
    """Build a configuration from plain values such as :func:`config_to_dict` gives; ``source`` names them in errors."""
    return cast(T, _build(cls, _compose(yaml.safe_dump(values, sort_keys=False), source), key=""))


def dump_config(config: Any, path: str | Path) -> None:
    """Write a configuration as YAML that :func:`load_config` reads back to an equal value."""
    write_atomically(path, yaml.safe_dump(config_to_dict(config), sort_keys=False).encode())


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, lists and scalars."""
    return {field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def add_config_arguments(parser: argparse.ArgumentParser, cls: type, default_path: str | Path | None) -> None:
    """Add ``--config FILE``, dotted overrides and ``--show-config`` to a parser, and list all fields in its help."""
    parser.add_argument("--config", metavar="FILE", default=default_path, type=Path, help="YAML file (default: %(default)s)")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="override a setting, for example learner.batch_size=512"
    )
    parser.add_argument("--show-config", action="store_true", help="print the resolved settings as YAML and exit")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    listing = "\n".join(f"  {line}" for line in describe_settings(cls))
    parser.epilog = f"settings (KEY=VALUE, shown with their defaults):\n{listing}"


def config_from_arguments(cls: type[T], arguments: argparse.Namespace) -> T:
    """Build the configuration that parsed arguments ask for; prints it and exits when ``--show-config`` was given."""
    config = load_config(cls, arguments.config, arguments.overrides)
    if arguments.show_config:
        print(yaml.safe_dump(config_to_dict(config), sort_keys=False), end="")
        raise SystemExit(0)
    return config


def describe_settings(cls: type, prefix: str = "", base: Any = None) -> list[str]:
    """Return one line per field: dotted key, default, unit and explanation.

    Args:
        cls: the dataclass.
        prefix: what its keys begin with.
        base: an instance that gives the defaults, instead of the class's own.
    """
    hints = typing.get_type_hints(cls)
    lines = []
    for field in _fields(cls):
        value = _default(field, base)
        if dataclasses.is_dataclass(hints[field.name]):
            lines += describe_settings(cast(type, hints[field.name]), f"{prefix}{field.name}.", value)
            continue
        default = "required" if value is dataclasses.MISSING else _to_text(value)
        unit = f" {field.metadata['unit']}" if field.metadata.get("unit") else ""
        lines.append(f"{prefix}{field.name}={default}{unit}  {field.metadata.get('help', '')}".rstrip())
    return lines


def _default(field: dataclasses.Field[Any], base: Any) -> Any:
    """Return the default of a field: the one of ``base`` where that is an instance, MISSING where there is none."""
    if base is not None and base is not dataclasses.MISSING:
        return getattr(base, field.name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _fields(cls: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return config_to_dict(value)
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _to_text(value: Any) -> str:
    """Return a value as it would stand on the command line."""
    return yaml.safe_dump(_to_plain(value), default_flow_style=True, width=math.inf).removesuffix("\n...\n").rstrip("\n")


def _compose_file(path: Path) -> yaml.Node:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"configuration file {path} does not exist.{did_you_mean(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration file {path}: {error}") from error
    return _compose(text, str(path)) or _empty_mapping(str(path))


def _compose(text: str, source: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        loader.name = source
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from error
    return node


def _empty_mapping(source: str) -> yaml.MappingNode:
    mark = yaml.Mark(source, 0, 0, 0, None, 0)
    return yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark)


def _apply_override(root: yaml.MappingNode, item: str) -> None:
    key, separator, text = item.partition("=")
    source = f"{_COMMAND_LINE}{item}'"
    if not separator or not key:
        raise ConfigError(f"{source}: expected KEY=VALUE, for example seed=1 or learner.batch_size=512")
    value = _compose(text, source) or _compose("null", source)
    *parents, last = key.split(".")
    node = root
    for part in parents:
        child = next((v for k, v in node.value if k.value == part), None)
        own = _empty_mapping(source)
        if isinstance(child, yaml.MappingNode):
            # a copy, because an alias in the file makes two keys share one node
            own = yaml.MappingNode(child.tag, list(child.value), child.start_mark, child.end_mark)
        _replace(node, part, own, source)
        node = own
    _replace(node, last, value, source)


def _replace(node: yaml.MappingNode, key: str, value: yaml.Node, source: str) -> None:
    for index, (key_node, _) in enumerate(node.value):
        if key_node.value == key:
            node.value[index] = (key_node, value)
            return
    mark = yaml.Mark(source, 0, 0, 0, None, 0)
    node.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", key, mark, mark), value))


def _where(node: yaml.Node) -> str:
    name = node.start_mark.name
    return name if name == _DEFAULTS or name.startswith(_COMMAND_LINE) else f"{name}:{node.start_mark.line + 1}"


def _refuse(node: yaml.Node, key: str, expected: str) -> ConfigError:
    if isinstance(node, yaml.ScalarNode):
        got = repr(node.value)
    else:
        got = "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    return ConfigError(f"{_where(node)}: {key or 'the file'} must be {expected}, got {got}")


def _build(annotation: Any, node: yaml.Node, key: str, default: Any = None) -> Any:
    if annotation is Any:
        return _build_plain(node, key)
    if dataclasses.is_dataclass(annotation):
        return _build_dataclass(cast(type, annotation), node, key, default)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _build_optional(arguments, node, key)
    if origin is Literal:
        return _build_literal(arguments, node, key)
    if origin is tuple:
        return _build_tuple(arguments, node, key)
    if origin is dict:
        if not isinstance(node, yaml.MappingNode):
            raise _refuse(node, key, "a mapping")
        return {name: _build(arguments[1], value, f"{key}.{name}") for _, name, value in _items(node, key)}
    return _build_scalar(annotation, node, key)


def _items(node: yaml.MappingNode, key: str) -> Iterator[tuple[yaml.Node, str, yaml.Node]]:
    """Yield key node, name and value node of each entry; refuses keys that are not plain names or stand twice."""
    seen: set[str] = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refuse(key_node, f"a key of {key}" if key else "a key", "a name")
        name: str = key_node.value
        if name in seen:
            raise ConfigError(f"{_where(key_node)}: key {f'{key}.{name}' if key else name!r} stands twice")
        seen.add(name)
        yield key_node, name, value_node


def _build_literal(choices: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
    texts = [str(choice) for choice in choices]
    if isinstance(node, yaml.ScalarNode):
        for choice, text in zip(choices, texts, strict=True):
            # texts are compared as written, so that a choice called 'off' needs no quotes
            if node.value == text and (isinstance(choice, str) or node.tag in (_YAML_INT, _YAML_BOOL, _YAML_NULL)):
                return choice
    suggestion = did_you_mean(node.value, texts) if isinstance(node, yaml.ScalarNode) else ""
    raise ConfigError(f"{_refuse(node, key, 'one of ' + ', '.join(texts))}.{suggestion}")


def _build_dataclass(cls: type, node: yaml.Node, key: str, base: Any = None) -> Any:
    """Build ``cls`` from a mapping; what does not stand there is that of ``base``, or of the class where there is none."""
    if not isinstance(node, yaml.MappingNode):
        raise _refuse(node, key, "a mapping of settings")
    hints, fields = typing.get_type_hints(cls), {field.name: field for field in _fields(cls)}
    values: dict[str, Any] = {}
    for key_node, name, value_node in _items(node, key):
        dotted = f"{key}.{name}" if key else name
        if name not in fields:
            raise ConfigError(
                f"{_where(key_node)}: unknown key {dotted!r}; known: {', '.join(fields)}.{did_you_mean(name, fields)}"
            )
        values[name] = _build(hints[name], value_node, dotted, _default(fields[name], base))
    defaults = {name: _default(field, base) for name, field in fields.items() if name not in values}
    missing = [name for name, value in defaults.items() if value is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"{_where(node)}: {key or 'configuration'} lacks required key(s): {', '.join(missing)}")
    try:
        return cls(**defaults | values)
    except ValueError as error:
        raise ConfigError(f"{_where(node)}: {key + ': ' if key else ''}{error}") from error


def _build_optional(arguments: tuple[Any, ...], node: yaml.Node, key: str) -> Any:
    if node.tag == _YAML_NULL and type(None) in arguments:
        return None
    failure: ConfigError | None = None
    choices = [argument for argument in arguments if argument is not type(None)]
    # what the value looks like comes first, so that an error is about what was meant
    for choice in sorted(choices, key=lambda choice: not _looks_like(choice, node)):
        try:
            return _build(choice, node, key)
        except ConfigError as error:
            failure = failure or error
    if not any(_looks_like(choice, node) for choice in choices):
        raise _refuse(node, key, " or ".join(dict.fromkeys(_form(choice) for choice in choices)))
    assert failure is not None, "a union has at least one member that is not None"
    raise failure


def _form(annotation: Any) -> str:
    """Return what a value of a type looks like in YAML."""
    if dataclasses.is_dataclass(annotation) or typing.get_origin(annotation) is dict:
        return "a mapping of settings"
    if typing.get_origin(annotation) is tuple:
        return f"a list of {len(typing.get_args(annotation))} values"
    return _EXPECTED.get(annotation, str(annotation))


def _looks_like(annotation: Any, node: yaml.Node) -> bool:
    if isinstance(node, yaml.MappingNode):
        return dataclasses.is_dataclass(annotation) or typing.get_origin(annotation) is dict
    if isinstance(node, yaml.SequenceNode):
        return typing.get_origin(annotation) is tuple
    return not dataclasses.is_dataclass(annotation) and typing.get_origin(annotation) not in (tuple, dict)


def _build_plain(node: yaml.Node, key: str) -> Any:
    """Return what YAML says, for values whose meaning somebody else knows."""
    if isinstance(node, yaml.MappingNode):
        return {name: _build_plain(value, f"{key}.{name}") for _, name, value in _items(node, key)}
    if isinstance(node, yaml.SequenceNode):
        return [_build_plain(item, f"{key}[{index}]") for index, item in enumerate(node.value)]
    for kind in (bool, int, float):
        if node.tag == f"tag:yaml.org,2002:{kind.__name__}":
            return _build_scalar(kind, node, key)
    return None if node.tag == _YAML_NULL else node.value


def _build_tuple(arguments: tuple[Any, ...], node: yaml.Node, key: str) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refuse(node, key, "a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_build(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(node.value))
    if len(node.value) != len(arguments):
        raise ConfigError(f"{_where(node)}: {key} must be a list of {len(arguments)} values, got {len(node.value)}")
    return tuple(_build(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(arguments, node.value, strict=True)))


def _build_scalar(annotation: Any, node: yaml.Node, key: str) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise _refuse(node, key, _EXPECTED.get(annotation, str(annotation)))
    text = node.value.replace("_", "")
    if annotation is bool and node.tag == _YAML_BOOL:
        return text.lower() in ("true", "yes", "on")
    if annotation is int and node.tag == _YAML_INT:
        try:
            return int(text, 0)
        except ValueError:  # '010' and '1:30' are integers to YAML 1.1, but not what they look like
            raise _refuse(node, key, "an integer in plain digits") from None
    if annotation is float and node.tag != _YAML_BOOL:
        try:
            value = float({".inf": "inf", "-.inf": "-inf"}.get(text.lower(), text))  # YAML 1.1 reads '1e-3' as a string
        except ValueError:
            raise _refuse(node, key, "a number") from None
        if math.isnan(value):
            raise _refuse(node, key, "a number")
        return value
    if annotation is str and node.tag != _YAML_NULL:
        return node.value
    if annotation is Path and node.tag != _YAML_NULL:
        return Path(node.value)
    raise _refuse(node, key, _EXPECTED.get(annotation, str(annotation)))
