import multiprocessing
import shutil
import time

import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.contents import BundleFiles
from rws.edge.bundle.edit import write_bundle
from rws.edge.bundle.manifest import Manifest
from rws.errors import BundleError
from support.tiny import bundle_parts, clean, make_signatures

SPAWN = multiprocessing.get_context("spawn")


def other_parts(seed):
    return bundle_parts(name=f"other {seed}", signatures=make_signatures(clean(), seed=seed))


def exchange(path, seconds):
    end, seed = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        write_bundle(path, other_parts(seed := seed + 1))


def test_a_bundle_that_is_replaced_while_it_is_read_is_read_again(bundle_path, monkeypatch):
    parse, left = Manifest.parse, [3, 2, 1]

    def exchanged(data, source):
        if left and source == str(bundle_path / "bundle.json"):
            write_bundle(bundle_path, other_parts(left.pop()))
        return parse(data, source)

    monkeypatch.setattr(Manifest, "parse", exchanged)
    assert Bundle.load(bundle_path).manifest.name == "other 3"
    assert not left


def test_a_bundle_that_is_removed_while_it_is_read_is_refused(bundle_path, monkeypatch):
    parse = Manifest.parse

    def removed(data, source):
        shutil.rmtree(bundle_path)
        return parse(data, source)

    monkeypatch.setattr(Manifest, "parse", removed)
    with pytest.raises(BundleError, match="bundle: cannot be read"):
        Bundle.load(bundle_path)


def test_no_reader_mistakes_an_exchange_for_damage(bundle_path):
    writer = SPAWN.Process(target=exchange, args=(bundle_path, 4))
    writer.start()
    names, reads = set(), 0
    while writer.is_alive():
        names.add(BundleFiles.read(bundle_path).manifest.name)
        reads += 1
    writer.join()
    assert writer.exitcode == 0
    assert reads > len(names) > 5
