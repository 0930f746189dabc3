"""Signed releases: which policy robots shall run from now on, said by somebody whom they trust.

A store is a folder. ``policies/<SHA-256>.onnx`` holds policy files under the hash of their bytes, ``release.json`` the present
release: a text that names one of them, and its Ed25519 signature. A release has a number that only grows, also when it goes back
to an older policy, so that an old release that somebody puts in its place is known as such.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from dpg_robot.errors import ConfigError, PolicyFileError
from dpg_robot.files import write_atomically, write_new
from dpg_robot.policy_file import PolicyMetadata, check_policy

RELEASE_FILE = "release.json"
POLICY_FOLDER = "policies"
FORMAT_VERSION = 1

_DOMAIN = b"dpg-robot release\n"  # so that a signature of something else is never one of a release
MAX_RELEASE_BYTES = 64 * 1024
MAX_POLICY_BYTES = 16 * 1024 * 1024  # what a control process can load beside its ticks
_LARGEST_NUMBER = 2**48


class ReleaseError(PolicyFileError):
    """A release that is missing, damaged, not signed by a trusted key, or names another policy than there is."""


@dataclass(frozen=True)
class Release:
    """What a release says.

    Attributes:
        number: grows by at least 1 with each release of a store.
        policy_sha256: SHA-256 of the policy file's bytes, hexadecimal.
        policy_id: name of the policy in logs, 16 hexadecimal digits.
        robots: names of the robots that it is for; empty: all that it fits.
        reason: why, for people.
        wall_ns: Unix time at which it was made, nanoseconds.
        format_version: version of this format.
    """

    number: int
    policy_sha256: str
    policy_id: str
    robots: tuple[str, ...] = ()
    reason: str = ""
    wall_ns: int = 0
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text that is signed."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Release:
        """Rebuild from :meth:`to_json`; raises ReleaseError when the version or a field is not as expected."""
        try:
            values = json.loads(text)
            version = values.pop("format_version")
            if version != FORMAT_VERSION:
                raise ReleaseError(f"a release of format {version}; this program reads {FORMAT_VERSION}: update it")
            release = cls(**{**values, "robots": tuple(values["robots"])})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ReleaseError):
                raise
            raise ReleaseError(f"the text of a release is not as expected: {error}") from error
        numbers = (release.number, release.wall_ns)
        if any(type(number) is not int for number in numbers) or not 1 <= release.number <= _LARGEST_NUMBER:
            raise ReleaseError(f"a release must have a number of 1 to {_LARGEST_NUMBER}, got {release.number!r}")
        for name, length in (("policy_sha256", 64), ("policy_id", 16)):
            value = getattr(release, name)
            if not isinstance(value, str) or len(value) != length or not set(value) <= set("0123456789abcdef"):
                raise ReleaseError(f"{name} of a release must be {length} hexadecimal digits, got {value!r}")
        return release


@dataclass(frozen=True)
class TrustedKey:
    """The public half of a key; what it signed is believed."""

    key: Ed25519PublicKey

    @classmethod
    def load(cls, path: str | Path) -> TrustedKey:
        """Read a PEM file. Raises ConfigError if it holds no public Ed25519 key."""
        try:
            key = load_pem_public_key(_read_key(path))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} holds no public key: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{path} holds a {type(key).__name__}, expected an Ed25519 key; make one with launch/host.py key")
        return cls(key)

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the key's SHA-256."""
        return hashlib.sha256(self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the key into a new PEM file. Raises FileExistsError if there is one."""
        write_new(path, self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@dataclass(frozen=True)
class SigningKey:
    """The private half of a key; whoever has it decides what robots do."""

    key: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | Path) -> SigningKey:
        """Read a PEM file. Raises ConfigError if it holds no private Ed25519 key, or others than its owner may read it."""
        content = _read_key(path)
        if stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
            raise ConfigError(f"others may read the private key {path}; keep it to yourself: chmod 600 {path}")
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} holds no private key without a password: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} holds a {type(key).__name__}, expected an Ed25519 key; make one with launch/host.py key")
        return cls(key)

    @property
    def public(self) -> TrustedKey:
        """The half that robots get."""
        return TrustedKey(self.key.public_key())

    def save(self, path: str | Path) -> None:
        """Write the key into a new PEM file that only its owner may read. Raises FileExistsError if there is one."""
        write_new(path, self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)

    def sign(self, release: Release) -> bytes:
        """Return the content of a release file."""
        text = release.to_json()
        signature = base64.b64encode(self.key.sign(_DOMAIN + text.encode())).decode()
        return json.dumps({"release": text, "key": self.public.id, "signature": signature}, indent=1).encode()


def verify_release(content: bytes, trusted: Iterable[TrustedKey]) -> Release:
    """Return the release in the content of a release file. Nothing of it is looked at before the signature was found right.

    Raises:
        ReleaseError: it is damaged, or no trusted key signed it.
    """
    by_id = {key.id: key for key in trusted}
    try:
        if len(content) > MAX_RELEASE_BYTES:
            raise ValueError(f"it has {len(content)} bytes, at most {MAX_RELEASE_BYTES} are read")
        document = json.loads(content)
        text, key_id = str(document["release"]), str(document["key"])
        signed = _DOMAIN + text.encode()
        signature = base64.b64decode(document["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise ReleaseError(f"a release file that cannot be read: {error}") from error
    if key_id not in by_id:
        raise ReleaseError(f"the release is signed by key {key_id[:16]!r}; trusted are: {', '.join(by_id) or 'none'}")
    try:
        by_id[key_id].key.verify(signature, signed)
    except InvalidSignature as error:
        raise ReleaseError(f"the signature of the release is not that of key {key_id}: it was changed after signing") from error
    return Release.from_json(text)


def read_release(store: str | Path, trusted: Sequence[TrustedKey]) -> Release:
    """Return the present release of a store. Raises ReleaseError as :func:`verify_release` does, or if there is none."""
    path = Path(store) / RELEASE_FILE
    content = _read_bounded(path, MAX_RELEASE_BYTES, "release")
    try:
        return verify_release(content, trusted)
    except ReleaseError as error:
        raise ReleaseError(f"{path}: {error}") from error


def read_released_policy(store: str | Path, release: Release) -> tuple[bytes, PolicyMetadata]:
    """Return bytes and metadata of the policy that a release names.

    Raises:
        ReleaseError: the file is missing, or is not the one that was signed.
        PolicyFileError: it is the one, but cannot be used.
    """
    content, metadata = read_stored_policy(store, release.policy_sha256)
    if metadata.policy_id != release.policy_id:
        raise ReleaseError(f"release {release.number} says policy {release.policy_id}, its file is {metadata.policy_id}")
    return content, metadata


def read_stored_policy(store: str | Path, sha256: str) -> tuple[bytes, PolicyMetadata]:
    """Return bytes and metadata of the policy of a hash; raises as :func:`read_released_policy` does."""
    return check_stored_policy(policy_path(store, sha256), sha256)


def check_stored_policy(path: Path, sha256: str) -> tuple[bytes, PolicyMetadata]:
    """Return bytes and metadata of a policy file that must have a hash; raises as :func:`read_released_policy` does."""
    content = _read_bounded(path, MAX_POLICY_BYTES, "policy")
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise ReleaseError(
            f"{path} has the hash {got[:16]}..., expected {sha256[:16]}...: it is not the policy that was released"
        )
    return content, check_policy(content, path)


def write_release(store: str | Path, policy: bytes, release: Release, key: SigningKey) -> None:
    """Make a release the present one of a store. The policy is there, whole, before the release names it.

    Raises:
        ReleaseError: the release does not describe this policy.
        OSError: as the file system reports it; the old release stays then.
    """
    store_release(store, policy, release, key.sign(release))


def store_release(store: str | Path, policy: bytes, release: Release, content: bytes) -> None:
    """Make a release that was signed already the present one of a store, as :func:`write_release` does.

    Args:
        store: the store.
        policy: bytes of the policy.
        release: what the release says.
        content: the signed release file.
    """
    if hashlib.sha256(policy).hexdigest() != release.policy_sha256:
        raise ReleaseError(f"release {release.number} names another policy than the one given")
    path = policy_path(store, release.policy_sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != policy:  # a damaged one is repaired
        write_atomically(path, policy)
    write_atomically(Path(store) / RELEASE_FILE, content)


def policy_path(store: str | Path, sha256: str) -> Path:
    """Return where a store keeps the policy of a hash."""
    return Path(store) / POLICY_FOLDER / f"{sha256}.onnx"


def _read_bounded(path: Path, most: int, what: str) -> bytes:
    """Return the content of an ordinary file of at most so many bytes; a pipe or device is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ReleaseError(f"the {what} {path} is no ordinary file")
            content = file.read(most + 1)
    except OSError as error:
        raise ReleaseError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    if len(content) > most:
        raise ReleaseError(f"the {what} {path} is larger than {most} bytes, the most that a robot takes")
    return content


def _read_key(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror or error}") from error
