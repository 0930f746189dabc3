"""Errors that a user can act on.

Every error of the project derives from :class:`DpgError` and also from the standard exception that it specialises, so that
callers may catch either. A message names what was got, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DpgError(Exception):
    """Base class of all errors raised on purpose by this project."""


class ConfigError(DpgError, ValueError):
    """A configuration file or command-line override that cannot be used."""


class UnknownNameError(DpgError, LookupError):
    """A name (task, preset, channel, ...) that is not known."""


class ContractError(DpgError, ValueError):
    """Two parts disagree on channels, units, rate, limits or shapes."""


class PolicyFileError(DpgError, ValueError):
    """A ``policy.onnx`` that is truncated, corrupt, of another version or made for another robot."""


class CheckpointError(DpgError, ValueError):
    """A checkpoint that is incomplete, corrupt or of another version."""


class LogError(DpgError, ValueError):
    """A robot log with a gap, a broken segment or unreadable content."""


class LogWriteError(DpgError, OSError):
    """The robot log could not be written; the message says which records are safe and which are not."""


class LinkError(DpgError, ConnectionError):
    """A serial port that does not exist, is busy, was unplugged or does not speak the expected protocol."""


class LinkTimeoutError(LinkError, TimeoutError):
    """No valid answer arrived before the deadline."""


class SafetyError(DpgError, RuntimeError):
    """The robot was stopped because a safety condition was violated."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` when a known name is close to ``name``, else an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not in ``known``; ``what`` says what kind of name it is."""
    choices = sorted(known)
    listing = ", ".join(choices) if choices else "none"
    return UnknownNameError(f"unknown {what} {name!r}; known: {listing}.{did_you_mean(name, choices)}")
