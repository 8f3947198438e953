"""Each file is read and hashed once, each network parsed once, and a swap builds the model once."""

import hashlib
from collections import Counter

import onnx
import onnxruntime
import pytest

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import FILES, MANIFEST
from rws.edge.bundle.options import ModelOptions
from rws.edge.bundle.self_test import self_test
from rws.edge.bundle.swap import switch_bundle
from rws.edge.common.files import OpenFolder
from rws.edge.pipeline import Pipeline


@pytest.fixture
def counts(monkeypatch):
    """How often what happens: a file's name → reads; `hashed`, `parsed`, `sessions`."""
    found = Counter()

    def count(owner, name, key):
        original = getattr(owner, name)

        def counted(*arguments, **options):
            if arguments:
                found[key(*arguments)] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    count(OpenFolder, "read", lambda folder, name, limit: name)
    count(hashlib, "sha256", lambda content: "hashed")
    count(onnx, "load_model_from_string", lambda content: "parsed")
    count(onnxruntime, "InferenceSession", lambda *source: "sessions")
    return found


def start(path):
    bundle = Bundle.load(path)
    return bundle, Pipeline.from_bundle(bundle, ModelOptions(threads=1))


def test_a_start_reads_hashes_and_parses_everything_once(bundle_path, counts):
    start(bundle_path)
    assert {name: counts[name] for name in (MANIFEST, *FILES)} == dict.fromkeys((MANIFEST, *FILES), 1)
    assert counts["hashed"] == len(FILES)
    assert counts["parsed"] == 2  # the model and the oracle


def test_after_a_start_nothing_is_kept(bundle_path, counts):
    bundle, _ = start(bundle_path)
    before = counts["model.onnx"]
    assert bundle.read("model.onnx") == (bundle_path / "model.onnx").read_bytes()
    assert counts["model.onnx"] == before + 1


def test_a_swap_tests_the_parts_that_will_run(bundle_path, counts):
    start(bundle_path)
    sessions = counts["sessions"]
    counts.clear()
    bundle, pipeline = start(bundle_path)
    lines = self_test(bundle, pipeline.model, pipeline.oracle)
    assert any("3 signatures" in line for line in lines)
    assert pipeline.model.mix == {}
    assert counts["sessions"] == sessions
    assert [counts[name] for name in (MANIFEST, *FILES)] == [1] * (1 + len(FILES))


def test_a_switch_parses_and_runs_nothing_in_this_process(bundle_path, tiny_bundle, counts, tmp_path):
    counts.clear()
    switch_bundle(tmp_path / "new", tiny_bundle.path)
    assert (counts["sessions"], counts["parsed"]) == (0, 0)
    # Of the new bundle, and of its copy on the disk.
    assert [counts[name] for name in FILES] == [2] * len(FILES)
