"""Signed releases: only what a trusted key has signed, unchanged, is believed."""

import base64
import dataclasses
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.errors import ConfigError, PolicyFileError
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import (
    RELEASE_FILE,
    Release,
    ReleaseError,
    SigningKey,
    TrustedKey,
    policy_path,
    read_release,
    read_released_policy,
    verify_release,
    write_release,
)

KEY = SigningKey.generate()
RELEASE = Release(3, "ab" * 32, "cd" * 8, ("arm-1",), "better", 1_700_000_000_000_000_000)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("tiny_policy", Path(__file__).parent / "deploy" / "tiny_policy.py")
    tiny_policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_policy)
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policy") / "policy.onnx").read_bytes()


def release_of(policy, folder, number=1):
    (folder / "given.onnx").write_bytes(policy)
    policy_id = read_policy_file(folder / "given.onnx")[1].policy_id
    return Release(number, hashlib.sha256(policy).hexdigest(), policy_id)


def test_what_a_trusted_key_signed_comes_back_as_it_was():
    assert verify_release(KEY.sign(RELEASE), [SigningKey.generate().public, KEY.public]) == RELEASE


def test_another_key_is_not_believed_and_named():
    with pytest.raises(ReleaseError, match=f"signed by key '{KEY.public.id}'; trusted are: none"):
        verify_release(KEY.sign(RELEASE), [])
    forged = json.loads(SigningKey.generate().sign(RELEASE)) | {"key": KEY.public.id}
    with pytest.raises(ReleaseError, match="changed after signing"):
        verify_release(json.dumps(forged).encode(), [KEY.public])


@given(st.data())
def test_no_changed_byte_of_text_or_signature_is_believed(data):
    document = json.loads(KEY.sign(RELEASE))
    where = data.draw(st.sampled_from(["release", "signature"]))
    raw = bytearray(document[where].encode() if where == "release" else base64.b64decode(document[where]))
    place, change = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(1, 127))
    raw[place] ^= change
    document[where] = raw.decode("latin-1") if where == "release" else base64.b64encode(raw).decode()
    with pytest.raises(ReleaseError):
        verify_release(json.dumps(document).encode(), [KEY.public])


@given(st.binary(max_size=300))
def test_anything_else_is_refused_and_never_an_unexpected_error(content):
    with pytest.raises(ReleaseError):
        verify_release(content, [KEY.public])


@given(st.text(alphabet=st.characters(), max_size=50), st.binary(max_size=80))
def test_any_text_under_the_name_of_a_trusted_key_is_refused(text, signature):
    document = {"release": text, "key": KEY.public.id, "signature": base64.b64encode(signature).decode()}
    with pytest.raises(ReleaseError):
        verify_release(json.dumps(document).encode(), [KEY.public])


def test_half_of_a_surrogate_pair_is_refused():
    document = {"release": "\ud800", "key": KEY.public.id, "signature": ""}
    with pytest.raises(ReleaseError, match="cannot be read"):
        verify_release(json.dumps(document).encode(), [KEY.public])


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b'{"release": "", "key": "", "signature": 3}', b"[" * 60_000, b" " * 70_000, b'{"release": {}}'],
)
def test_documents_of_another_form_are_refused(content):
    with pytest.raises(ReleaseError):
        verify_release(content, [KEY.public])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"number": 0}, "number of 1 to"),
        ({"number": True}, "number of 1 to"),
        ({"number": 2**63}, "number of 1 to"),
        ({"policy_sha256": "../../etc/passwd"}, "64 hexadecimal digits"),
        ({"policy_id": "x" * 16}, "16 hexadecimal digits"),
        ({"format_version": 2}, "format 2"),
    ],
)
def test_a_signed_release_that_makes_no_sense_is_refused_too(change, said):
    with pytest.raises(ReleaseError, match=said):
        verify_release(KEY.sign(dataclasses.replace(RELEASE, **change)), [KEY.public])


def test_a_signature_of_the_same_text_for_another_purpose_does_not_count():
    text = RELEASE.to_json()
    signature = base64.b64encode(KEY.key.sign(text.encode())).decode()
    content = json.dumps({"release": text, "key": KEY.public.id, "signature": signature}).encode()
    with pytest.raises(ReleaseError, match="changed after signing"):
        verify_release(content, [KEY.public])


def test_keys_are_kept_in_files_that_only_their_owner_may_read(tmp_path):
    KEY.save(tmp_path / "host.key")
    KEY.public.save(tmp_path / "host.pub")
    assert (tmp_path / "host.key").stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(tmp_path / "host.key").public.id == KEY.public.id == TrustedKey.load(tmp_path / "host.pub").id
    with pytest.raises(FileExistsError):
        SigningKey.generate().save(tmp_path / "host.key")
    os.chmod(tmp_path / "host.key", 0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        SigningKey.load(tmp_path / "host.key")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_files_that_are_no_keys_are_refused(content, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    for kind in (SigningKey, TrustedKey):
        with pytest.raises(ConfigError, match="key"):
            kind.load(path)


def test_a_store_gives_the_policy_that_was_released(policy, tmp_path):
    release = release_of(policy, tmp_path)
    write_release(tmp_path, policy, release, KEY)
    assert read_release(tmp_path, [KEY.public]) == release
    content, metadata = read_released_policy(tmp_path, release)
    assert (content, metadata.policy_id) == (policy, release.policy_id)


def test_a_policy_that_was_exchanged_or_is_missing_is_refused(policy, tmp_path):
    release = release_of(policy, tmp_path)
    write_release(tmp_path, policy, release, KEY)
    path = policy_path(tmp_path, release.policy_sha256)
    path.write_bytes(policy + b"\0")
    with pytest.raises(ReleaseError, match="it is not the policy that was released"):
        read_released_policy(tmp_path, release)
    path.unlink()
    with pytest.raises(ReleaseError, match="cannot read the policy"):
        read_released_policy(tmp_path, release)
    with pytest.raises(ReleaseError, match="cannot read the release"):
        read_release(tmp_path / "elsewhere", [KEY.public])


def test_a_release_must_describe_its_policy(policy, tmp_path):
    with pytest.raises(ReleaseError, match="another policy"):
        write_release(tmp_path, policy, RELEASE, KEY)
    assert not (tmp_path / RELEASE_FILE).exists()
    wrong_id = dataclasses.replace(release_of(policy, tmp_path), policy_id="0" * 16)
    write_release(tmp_path, policy, wrong_id, KEY)
    with pytest.raises(ReleaseError, match="says policy 0000"):
        read_released_policy(tmp_path, wrong_id)


def test_what_is_signed_but_no_policy_is_refused(tmp_path):
    content = b"anything"
    release = Release(1, hashlib.sha256(content).hexdigest(), "0" * 16)
    write_release(tmp_path, content, release, KEY)
    with pytest.raises(PolicyFileError, match="not a whole ONNX file"):
        read_released_policy(tmp_path, release)
