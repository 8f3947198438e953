"""Whose bundles may run: keys in PEM, a signature over `bundle.json`, and all that tries to get around them."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.edit import add_signatures, remove_signature, sign_bundle, write_bundle
from rws.edge.bundle.keys import SIGNATURE_BYTES, make_keys, sign, trusted_keys
from rws.edge.bundle.manifest import FILES, MAKER_SIGNATURE, MANIFEST
from rws.edge.bundle.swap import switch_bundle
from rws.edge.bundle.watcher import BundleWatcher
from rws.edge.onnx.graph import clean_tensors, read_model
from rws.errors import BundleError, FormatError, InputError, MissingExtraError, RwsError
from support.bundle_files import edit_manifest, replace_file
from support.tiny import bundle_parts, make_signatures

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
asymmetric = pytest.importorskip("cryptography.hazmat.primitives.asymmetric")
for kind in ("ec", "rsa", "x25519"):
    pytest.importorskip(f"cryptography.hazmat.primitives.asymmetric.{kind}")


def never():
    pytest.fail("asked for the passphrase of a key that is not encrypted")


@pytest.fixture(scope="module")
def makers(tmp_path_factory):
    """A folder with two pairs of keys, `ours` and `other`."""
    folder = tmp_path_factory.mktemp("makers")
    for name in ("ours", "other"):
        make_keys(folder / f"{name}.key", folder / f"{name}.pub")
    return folder


@pytest.fixture(scope="module")
def keys(makers):
    return trusted_keys([makers / "ours.pub"])


@pytest.fixture(scope="module")
def signed_bundle(makers, tmp_path_factory):
    """A signed bundle that no test may change."""
    path = write_bundle(tmp_path_factory.mktemp("signed") / "tiny", bundle_parts()).path
    sign_bundle(path, makers / "ours.key", never)
    return path


@pytest.fixture
def signed(signed_bundle, tmp_path):
    """A copy of it that the test may change."""
    return Path(shutil.copytree(signed_bundle, tmp_path / "bundle"))


@pytest.fixture
def bundle_path(tmp_path):
    """A bundle that is not signed."""
    return write_bundle(tmp_path / "plain", bundle_parts(name="plain")).path


def refuse(folder, keys, message):
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(folder, keys)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def pem(key):
    form = serialization
    return key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def test_a_signed_bundle_says_by_whom(signed, makers, keys):
    (key_id,) = keys.by_id
    bundle = Bundle.load(signed, keys)
    assert (bundle.signed, bundle.signed_by) == (True, key_id)
    assert (signed / MAKER_SIGNATURE).stat().st_size == SIGNATURE_BYTES
    unchecked = Bundle.load(signed)
    assert (unchecked.signed, unchecked.signed_by) == (True, "")
    both = trusted_keys([makers / "other.pub", makers / "ours.pub"])
    assert Bundle.load(signed, both).signed_by == key_id


def test_what_is_not_signed_with_a_trusted_key_is_refused(signed, makers, keys):
    refuse(signed, trusted_keys([makers / "other.pub"]), "altered, or signed by none of the trusted keys")
    (signed / MAKER_SIGNATURE).unlink()
    refuse(signed, keys, "not signed, expected a signature of one of the trusted keys")
    assert not Bundle.load(signed).signed
    with pytest.raises(BundleError, match="not signed"):  # the bundle that ships has no exception
        Bundle.load(None, keys)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_of_signature_or_manifest_is_refused(signed_bundle, keys, data):
    name = data.draw(st.sampled_from([MAKER_SIGNATURE, MANIFEST]))
    contents = {file: (signed_bundle / file).read_bytes() for file in (MAKER_SIGNATURE, MANIFEST)}
    place = data.draw(st.integers(0, 8 * len(contents[name]) - 1))
    changed = bytearray(contents[name])
    changed[place // 8] ^= 1 << place % 8
    contents[name] = bytes(changed)
    with pytest.raises(BundleError, match="altered, or signed by none"):
        keys.signer(contents[MANIFEST], contents[MAKER_SIGNATURE], "a bundle")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_of_each_file_is_refused(signed, keys, name):
    data = bytearray((signed / name).read_bytes())
    data[len(data) // 2] ^= 1
    (signed / name).write_bytes(data)
    refuse(signed, keys, "altered: its SHA-256")
    replace_file(signed, name, bytes(data))  # with a manifest that agrees
    refuse(signed, keys, "altered, or signed by none")


@pytest.mark.parametrize("key", ["name", "classes", "provenance", "measured", "policy", "severity_levels"])
def test_the_signature_covers_all_that_the_manifest_says(signed, keys, key):
    def change(document):
        value = document[key]
        document[key] = (
            value[::-1] if isinstance(value, list) else value + "x" if key == "name" else {**value, "source": "x"}
        )

    edit_manifest(signed, change)
    refuse(signed, keys, "altered, or signed by none")


def test_the_same_manifest_in_other_bytes_is_refused(signed, keys):
    edit_manifest(signed, lambda document: None)
    assert Bundle.load(signed).manifest == Bundle.load(signed, None).manifest
    refuse(signed, keys, "altered, or signed by none")


def test_the_signature_of_another_bundle_is_refused(signed, makers, keys, tmp_path):
    other = write_bundle(tmp_path / "other", bundle_parts(name="other")).path
    sign_bundle(other, makers / "ours.key", never)
    assert Bundle.load(other, keys).signed_by
    shutil.copy(other / MAKER_SIGNATURE, signed)
    refuse(signed, keys, "altered, or signed by none")


def test_nothing_of_an_unsigned_bundle_is_parsed(signed, keys):
    for name in (MANIFEST, *FILES):
        (signed / name).write_bytes(b"not what it should be")
    refuse(signed, keys, "altered, or signed by none")
    for name in FILES:
        (signed / name).unlink()
    refuse(signed, keys, "altered, or signed by none")


@pytest.mark.parametrize(
    ("make", "message"),
    {
        "fifo": (os.mkfifo, "not a regular file"),
        "folder": (os.mkdir, "not a regular file"),
        "link": (lambda path: path.symlink_to(MANIFEST), "cannot be read"),
        "link to nothing": (lambda path: path.symlink_to("nowhere"), "cannot be read"),
        "huge": (lambda path: path.open("wb").truncate(10**12), "expected at most 64"),
        "one byte more": (lambda path: path.write_bytes(bytes(65)), "expected at most 64"),
        "short": (lambda path: path.write_bytes(bytes(63)), "has 63 bytes, expected 64"),
        "empty": (lambda path: path.touch(), "has 0 bytes, expected 64"),
        "text": (lambda path: path.write_text("untrusted comment: signature\n"), "has 29 bytes, expected 64"),
    }.values(),
)
@pytest.mark.parametrize("checked", [True, False])
def test_a_malformed_file_of_the_signature_is_refused(signed, keys, make, message, checked):
    (signed / MAKER_SIGNATURE).unlink()
    make(signed / MAKER_SIGNATURE)
    refuse(signed, keys if checked else None, message)


def test_a_folder_that_is_a_link(signed, makers, keys):
    link = signed.with_name("current")
    link.symlink_to(signed.name)
    assert Bundle.load(link, keys).signed_by
    sign_bundle(link, makers / "other.key", never)
    assert link.is_symlink()
    assert Bundle.load(link, trusted_keys([makers / "other.pub"])).signed_by


def test_a_second_signature_replaces_the_first(signed, makers, keys):
    first, signature = Bundle.load(signed, keys), (signed / MAKER_SIGNATURE).read_bytes()
    key_id = sign_bundle(signed, makers / "other.key", never)
    second = Bundle.load(signed, trusted_keys([makers / "other.pub"]))
    assert second.signed_by == key_id
    assert second.manifest == first.manifest
    refuse(signed, keys, "signed by none of the trusted keys")
    sign_bundle(signed, makers / "ours.key", never)
    assert (signed / MAKER_SIGNATURE).read_bytes() == signature  # ed25519 is deterministic


def test_what_is_damaged_or_holds_other_files_is_not_signed(signed, makers):
    (signed / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"holds 'notes.txt'"):
        sign_bundle(signed, makers / "ours.key", never)
    assert (signed / "notes.txt").exists()
    (signed / "notes.txt").unlink()
    (signed / "oracle.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="truncated"):
        sign_bundle(signed, makers / "ours.key", never)


def test_a_change_of_the_bundle_takes_the_signature_away(signed, keys):
    assert not remove_signature(signed, "fog").signed
    assert not (signed / MAKER_SIGNATURE).exists()
    refuse(signed, keys, "not signed")


def test_signatures_added_take_it_away_too(signed, keys):
    clean = clean_tensors(read_model(signed / "model.onnx"), Bundle.load(signed).signatures.tensors)
    add_signatures(signed, make_signatures(clean, ["rain"]))
    refuse(signed, keys, "not signed")


@pytest.mark.parametrize("linked", [False, True])
def test_a_switch_copies_the_bytes_that_were_signed(signed, bundle_path, keys, tmp_path, linked):
    current = Path(shutil.copytree(bundle_path, tmp_path / "v0"))
    if linked:
        current = tmp_path / "current"
        current.symlink_to("v0")
    new = Path(shutil.copytree(signed, tmp_path / "elsewhere" / "v1"))
    switch_bundle(current, new, keys=keys)
    assert {path.name: path.read_bytes() for path in current.iterdir()} == {
        path.name: path.read_bytes() for path in new.iterdir()
    }
    assert Bundle.load(current, keys).signed_by


def test_a_manifest_in_another_spelling_keeps_its_signature_in_a_switch(signed, makers, keys, tmp_path):
    # A copy in our own spelling would break the signature.
    edit_manifest(signed, lambda document: None)
    signature, _ = sign((signed / MANIFEST).read_bytes(), makers / "ours.key", never)
    (signed / MAKER_SIGNATURE).write_bytes(signature)
    switch_bundle(tmp_path / "first", signed, keys=keys)
    assert (tmp_path / "first" / MANIFEST).read_bytes() == (signed / MANIFEST).read_bytes()
    assert Bundle.load(tmp_path / "first", keys).signed_by


def test_a_switch_refuses_what_is_not_signed(signed, bundle_path, keys):
    before = {path.name: path.read_bytes() for path in signed.iterdir()}
    with pytest.raises(BundleError, match="not signed"):
        switch_bundle(signed, bundle_path, keys=keys)
    assert {path.name: path.read_bytes() for path in signed.iterdir()} == before
    switch_bundle(signed, bundle_path)  # nobody asked for a signature, and none is left over
    assert not (signed / MAKER_SIGNATURE).exists()


def test_the_private_key_is_its_owners_and_is_not_replaced(tmp_path):
    private, public = tmp_path / "a.key", tmp_path / "a.pub"
    before = os.umask(0)
    try:
        make_keys(private, public)
    finally:
        os.umask(before)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    kept = private.read_bytes(), public.read_bytes()
    for other in (tmp_path / "b.key", tmp_path / "link.key"):
        with pytest.raises(InputError, match="is there already"):
            make_keys(other, public)
        assert not other.exists()
    (tmp_path / "link.key").symlink_to("nowhere")
    for taken in (private, tmp_path / "link.key"):
        with pytest.raises(InputError, match="is there already"):
            make_keys(taken, tmp_path / "c.pub")
    assert (private.read_bytes(), public.read_bytes()) == kept
    assert sorted(os.listdir(tmp_path)) == ["a.key", "a.pub", "link.key"]


def test_a_passphrase_locks_the_private_key(tmp_path):
    key_id = make_keys(tmp_path / "a.key", tmp_path / "a.pub", "a passphrase: ü".encode())
    assert b"ENCRYPTED" in (tmp_path / "a.key").read_bytes()
    signature, found = sign(b"manifest", tmp_path / "a.key", "a passphrase: ü".encode)
    assert found == key_id
    assert trusted_keys([tmp_path / "a.pub"]).signer(b"manifest", signature, "it") == key_id
    with pytest.raises(InputError, match="cannot be decrypted"):
        sign(b"manifest", tmp_path / "a.key", lambda: b"another")


def bad_public_keys(folder, ours):
    """{name: (content of a file, or how to make it, what the error says)}."""
    private, public = (ours / "ours.key").read_bytes(), (ours / "ours.pub").read_bytes()
    return {
        "empty": (b"", "holds 0 keys"),
        "NUL": (bytes(100), "holds 0 keys"),
        "text": (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here\n", "holds 0 keys"),
        "private": (private, "is a private key"),
        "two": (public * 2, "holds 2 keys"),
        "cut": (public[:-30], "not a public key in PEM"),
        "certificate": (public.replace(b"PUBLIC KEY", b"CERTIFICATE"), "not a public key in PEM"),
        "rsa": (pem(asymmetric.rsa.generate_private_key(65537, 2048)), "RSAPublicKey, expected ed25519"),
        "ec": (pem(asymmetric.ec.generate_private_key(asymmetric.ec.SECP256R1())), "ECPublicKey, expected ed25519"),
        "x25519": (pem(asymmetric.x25519.X25519PrivateKey.generate()), "X25519PublicKey, expected ed25519"),
        "large": (public + b" " * 20_000, "expected at most 16384"),
        "fifo": (os.mkfifo, "not a regular file"),
        "folder": (os.mkdir, "not a regular file"),
        "absent": (lambda path: None, "No such file"),
    }


def test_files_that_are_no_public_key_are_refused(tmp_path, makers):
    for name, (content, message) in bad_public_keys(tmp_path, makers).items():
        path = tmp_path / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        for paths in ([path], [makers / "ours.pub", path]):
            with pytest.raises((FormatError, InputError), match=message) as caught:
                trusted_keys(paths)
            assert "\n" not in str(caught.value)
            assert str(path) in str(caught.value)


def test_files_that_are_no_private_key_are_refused(tmp_path, makers):
    form = serialization
    rsa_key = asymmetric.rsa.generate_private_key(65537, 2048)
    contents = {
        "public": ((makers / "ours.pub").read_bytes(), "is a public key"),
        "rsa": (
            rsa_key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()),
            "expected ed25519",
        ),
        "cut": ((makers / "ours.key").read_bytes()[:-40], "not a private key in PEM"),
        "empty": (b"", "holds 0 keys"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((FormatError, InputError), match=message):
            sign(b"manifest", tmp_path / name, never)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_key_file_is_a_typed_error_or_another_key(makers, tmp_path_factory, data):
    content = bytearray((makers / "ours.pub").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pub"
    path.write_bytes(content)
    try:
        found = trusted_keys([path])
    except RwsError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(found.by_id) == 1


def test_no_path_is_no_check_and_one_path_always_is():
    assert trusted_keys(None) is None
    assert trusted_keys([]) is None
    with pytest.raises(InputError, match="not a regular file"):
        trusted_keys([Path("")])


def test_without_the_extra_nothing_is_trusted(monkeypatch, makers):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"rws-edge\[sign\]"):
        trusted_keys([makers / "ours.pub"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_understands_keys_and_signatures(signed, makers, keys, tmp_path):
    def openssl(*arguments, check=True):
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=False, timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done

    verify = ("pkeyutl", "-verify", "-rawin", "-in", signed / MANIFEST, "-sigfile", signed / MAKER_SIGNATURE, "-pubin")
    openssl(*verify, "-inkey", makers / "ours.pub")
    assert openssl(*verify, "-inkey", makers / "other.pub", check=False).returncode != 0
    der = openssl("pkey", "-pubin", "-in", makers / "ours.pub", "-outform", "DER").stdout
    assert hashlib.sha256(der).hexdigest()[:16] == next(iter(keys.by_id))
    # And the other way round: a key of openssl, and what it has signed.
    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "theirs.key")
    openssl("pkey", "-in", tmp_path / "theirs.key", "-pubout", "-out", tmp_path / "theirs.pub")
    manifest = ("-rawin", "-in", signed / MANIFEST, "-out", signed / MAKER_SIGNATURE)
    openssl("pkeyutl", "-sign", "-inkey", tmp_path / "theirs.key", *manifest)
    theirs = trusted_keys([tmp_path / "theirs.pub"])
    assert Bundle.load(signed, theirs).signed_by == sign(b"", tmp_path / "theirs.key", never)[1]


class Watched:
    """A watch on a bundle that runs; `steps` is what it has built after some seconds of its clock."""

    def __init__(self, path, keys):
        self.now = 0.0
        self.watch = BundleWatcher(path, lambda bundle: bundle.manifest.name, keys=keys, clock=lambda: self.now)

    def steps(self, count=4):
        ready = []
        for _ in range(count):
            self.now += 1.0
            ready.append(self.watch.poll())
            if self.watch._thread is not None:
                self.watch._thread.join()
        return [name for name in ready if name is not None]


def test_a_watch_refuses_what_is_not_signed_and_goes_on(signed, bundle_path, makers, keys):
    watched = Watched(signed, keys)
    switch_bundle(signed, bundle_path)
    assert watched.steps() == []
    assert (watched.watch.failures, "not signed" in watched.watch.error) == (1, True)
    sign_bundle(signed, makers / "other.key", never)
    assert watched.steps() == []
    assert (watched.watch.failures, "signed by none" in watched.watch.error) == (2, True)
    sign_bundle(signed, makers / "ours.key", never)
    assert watched.steps() == ["plain"]
    assert (watched.watch.failures, watched.watch.error) == (2, "")


def test_a_watch_notices_a_signature_that_goes_away_or_is_exchanged(signed, keys):
    signature = (signed / MAKER_SIGNATURE).read_bytes()
    watched = Watched(signed, keys)
    (signed / MAKER_SIGNATURE).unlink()
    assert watched.steps() == []
    assert watched.watch.failures == 1  # the same bundle would not start again
    (signed / MAKER_SIGNATURE).write_bytes(bytes(SIGNATURE_BYTES))
    assert watched.steps() == []
    assert watched.watch.failures == 2
    (signed / MAKER_SIGNATURE).write_bytes(signature)
    assert watched.steps() == []  # it runs already
    assert (watched.watch.failures, watched.watch.error) == (2, "")


def test_a_signed_bundle_that_is_copied_file_by_file_is_taken_up_when_it_is_whole(signed, bundle_path, makers, keys):
    sign_bundle(bundle_path, makers / "ours.key", never)
    watched = Watched(signed, keys)
    for name in (MAKER_SIGNATURE, *FILES, MANIFEST):
        shutil.copy(bundle_path / name, signed)
        assert watched.steps(1) == []
    assert watched.steps() == ["plain"]
    assert watched.watch.failures == 0


def test_a_file_exchanged_after_the_check_is_not_used(signed, keys):
    files = BundleFiles.read(signed, keys)
    for name in (MANIFEST, *FILES):
        (signed / name).write_bytes(b"not what was signed")
    bundle = Bundle.parse(files)
    assert bundle.signed_by
    assert bundle.model().predict(np.zeros((3, 8, 8), np.float32))[0].shape == (1, 4)
