import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rws.benchmarks.replay.streams import OUTCOME, StreamOptions, make_timeline, replay_streams
from rws.benchmarks.streams.images import clean_images
from rws.benchmarks.streams.ours import OURS, Outcome
from rws.benchmarks.streams.protocols import PROTOCOLS, SHUFFLED
from rws.benchmarks.streams.scores import NAMES
from rws.edge.bundle.bundle import Bundle
from rws.errors import InputError
from support.command_line import invoke


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("cifar10")


@pytest.fixture(scope="module")
def result(bundle, image_folder):
    return replay_streams(bundle, str(image_folder), StreamOptions(frames=20, seed=3))


def test_every_protocol_has_a_row_for_every_method(result):
    assert [(row["protocol"], row["method"]) for row in result["rows"]] == [(p, m) for p in PROTOCOLS for m in OURS]
    assert result["types"] == list(NAMES)
    rows = {(row["protocol"], row["method"]): row for row in result["rows"]}
    for protocol in PROTOCOLS:
        for method in OURS:
            row, perfect = rows[protocol, method], rows[protocol, "perfect"]
            assert row["ta"] == row["per_type"][0]
            assert row["ra"] == pytest.approx(np.mean(row["per_type"][1:]), abs=0.02)
            assert row["regret"] == pytest.approx(perfect["ra"] - row["ra"], abs=0.02)
            assert row["ta_lost"] == pytest.approx(perfect["ta"] - row["ta"], abs=0.02)
            assert ("mix_change_rate" in row) == (method not in ("std", "always"))
        assert perfect["regret"] == perfect["ta_lost"] == 0
        assert rows[protocol, "trained"]["ra"] > rows[protocol, "std"]["ra"]
        assert (rows[protocol, "trained"]["delay"] is None) == (protocol in SHUFFLED)
        assert perfect["right"] == 100
    for protocol in ("mixed", "continual", "correlated", "potpourri"):
        # Who has no memory scores the same in any order of the same frames.
        for method in ("std", "always", "perfect", "best", "frame"):
            assert rows[protocol, method]["per_type"] == rows["iid", method]["per_type"]
    assert rows["continual", "perfect"]["delay"]["mean"] == 0
    assert rows["continual", "trained"]["mix_change_rate"] < rows["continual", "frame"]["mix_change_rate"]
    assert rows["gradual", "trained"]["delay_severity"]["blocks"] > 100
    assert rows["gradual", "perfect"]["delay"]["mean"] == 0


def test_the_timeline_is_small_and_covers_all_frames(result, bundle, image_folder):
    images = clean_images(bundle, str(image_folder))
    timeline = result["timeline"]
    assert timeline == make_timeline(bundle, images, StreamOptions(frames=20, seed=3))
    assert len(json.dumps(timeline)) < 10_000
    runs = [timeline["true"], *timeline["believed"].values(), *timeline["mix"].values()]
    assert all(sum(length for _, length in run) == timeline["frames"] == 400 for run in runs)
    assert timeline["mix"]["perfect"] == timeline["true"]
    assert {len(curve) for curve in timeline["correct"].values()} == {400 // timeline["step"]}


class FakeBaseline:
    """A baseline in the place of the trained ones; counts the frames that it classifies."""

    frames = 0
    carried_bytes = 0
    identity = "weights"

    def __init__(self, name: str, answer: int) -> None:
        self.name, self._answer = name, answer

    def reset(self) -> None:
        pass

    def classify(self, x, types, severities):
        FakeBaseline.frames += len(x)
        return np.where(types < 0, 0, self._answer)


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(bundle, image_folder, tmp_path, monkeypatch):
    baselines = [FakeBaseline("fake baseline", 1), FakeBaseline("other", 2)]
    monkeypatch.setattr("rws.benchmarks.replay.streams.make_baselines", lambda bundle, work, only: baselines)
    measured: list[int] = []

    def measure_cost(bundle, work, sample, batches, names):
        measured.extend(batches)
        assert names == ["fake baseline", "other"]
        return {"threads": 1, "rows": [{"batch": batch, "frames": len(sample.x)} for batch in batches]}

    monkeypatch.setattr("rws.benchmarks.replay.streams.measure_cost", measure_cost)
    lines: list[str] = []

    def run(seed=0, stop_at=None, **settings):
        def progress(line):
            lines.append(line)
            if stop_at is not None and stop_at in line:
                raise KeyboardInterrupt

        FakeBaseline.frames = 0
        lines.clear()
        measured.clear()
        options = StreamOptions(
            protocols=["mixed", "iid"],
            frames=3,
            seed=seed,
            batches=(1, 5),
            baselines=tmp_path,
            progress=progress,
            **settings,
        )
        return replay_streams(bundle, str(image_folder), options)

    whole = run()
    assert FakeBaseline.frames == 8 * 60
    assert [row["protocol"] for row in whole["rows"]] == ["iid"] * 10 + ["mixed"] * 10
    assert [(row["method"], row["batch"]) for row in whole["rows"][6:10]] == [
        ("fake baseline", 1),
        ("other", 1),
        ("fake baseline", 5),
        ("other", 5),
    ]
    assert whole["cost"] == {"threads": 1, "rows": [{"batch": 1, "frames": 40}, {"batch": 5, "frames": 40}]}
    parts = tmp_path / "result.json.parts"
    with pytest.raises(KeyboardInterrupt):
        run(parts=parts, stop_at="fake baseline, batch 1, mixed")
    assert FakeBaseline.frames == 2 * 60
    assert run(parts=parts) == whole
    assert FakeBaseline.frames == 6 * 60
    assert "ours: 2 of 2 protocols from before" in lines
    assert measured == [1, 5]
    assert run(parts=parts) == whole
    assert FakeBaseline.frames == 0
    assert measured == []
    assert run(parts=parts, remeasure=True) == whole
    assert FakeBaseline.frames == 0
    assert measured == [1, 5]
    (cost,) = parts.glob("cost-5-*.json")
    cost.write_bytes(cost.read_bytes().replace(b"40", b"41"))
    assert run(parts=parts) == whole
    assert measured == [5]
    damaged = next(parts.glob("iid-fake_baseline-5-*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert run(parts=parts) == whole
    assert FakeBaseline.frames == 60
    run(parts=parts, resume=False)
    assert FakeBaseline.frames == 8 * 60
    run(parts=parts, seed=1)
    assert FakeBaseline.frames == 8 * 60
    monkeypatch.setattr(baselines[0], "identity", "other weights")
    run(parts=parts)
    assert FakeBaseline.frames == 4 * 60
    assert measured == [1, 5]
    monkeypatch.setattr("rws.benchmarks.replay.streams.STREAMS_VERSION", 0)
    run(parts=parts)
    assert FakeBaseline.frames == 8 * 60
    assert "ours: 0 of 2 protocols from before" in lines


def test_outcomes_come_back_as_they_were():
    count = np.arange(80)
    kept = Outcome(count % 10, ({}, {"fog": 0.5}), count % 2, count % 20)
    found = OUTCOME.decode(OUTCOME.encode(kept))
    assert found.mixes == kept.mixes
    for key in ("predicted", "mix", "believed"):
        np.testing.assert_array_equal(getattr(found, key), getattr(kept, key))
        assert getattr(found, key).dtype == np.int64


def test_a_bundle_that_knows_fewer_corruptions_gets_streams_of_those(bundle, image_folder, monkeypatch):
    known = ("fog", "snow")
    fewer = replace(bundle, manifest=replace(bundle.manifest, corruptions=known))
    seen = {}

    def spy(methods, streams, pixels, progress):
        seen.update(streams)
        raise KeyboardInterrupt

    monkeypatch.setattr("rws.benchmarks.replay.streams.run_ours", spy)
    monkeypatch.setattr("rws.benchmarks.replay.streams.our_methods", lambda *arguments: [SimpleNamespace(name="any")])
    with pytest.raises(KeyboardInterrupt):
        replay_streams(fewer, str(image_folder), StreamOptions(frames=4))
    for stream in seen.values():
        assert {NAMES[kind + 1] for kind in stream.type} == {"clean", *known}
    other = replace(bundle, manifest=replace(bundle.manifest, corruptions=("fog", "rain")))
    with pytest.raises(InputError, match="knows the corruption 'rain', which streams cannot show; take a bundle"):
        replay_streams(other, str(image_folder), StreamOptions(frames=4))


def test_bad_arguments_are_named(bundle, image_folder, tmp_path):
    def run(**settings):
        return replay_streams(bundle, str(image_folder), StreamOptions(**settings))

    with pytest.raises(InputError, match="unknown protocol 'shuffled'"):
        run(protocols=["shuffled"])
    with pytest.raises(InputError, match="batch sizes"):
        run(batches=[0])
    with pytest.raises(InputError, match=r"\(--frames\) .* each is shown once"):
        run(frames=10_000)
    with pytest.raises(InputError, match="rws bench baselines"):
        run(frames=2, baselines=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    shutil.copytree(image_folder / "test", tmp_path / "imagenet-c" / "fog" / "5")
    (tmp_path / "cifar-c").mkdir()
    (tmp_path / "cifar-c" / "labels.npy").touch()
    for corrupted in ("imagenet-c", "cifar-c"):
        with pytest.raises(InputError, match=r"corrupted already; streams .* give a clean test folder"):
            replay_streams(bundle, str(tmp_path / corrupted), StreamOptions(frames=2))


def test_the_command_writes_json_and_csv(image_folder, tmp_path):
    report, table = tmp_path / "streams.json", tmp_path / "streams.csv"
    options = ("--frames", 5, "--severity", "all", "--protocol", "continual", "--protocol", "mixed")
    done = invoke("bench", "streams", "--data", image_folder, *options, "--json", report, "--csv", table)
    found = json.loads(report.read_text())
    assert found["severity"] == "all"
    assert found["frames_per_type"] == 5
    assert found["versions"]["onnxruntime"]
    assert [row["method"] for row in found["rows"]] == [*OURS, *OURS]
    rows = list(csv.DictReader(table.open()))
    assert [(row["protocol"], row["method"]) for row in rows] == [(r["protocol"], r["method"]) for r in found["rows"]]
    assert float(rows[0]["fog"]) == pytest.approx(found["rows"][0]["per_type"][NAMES.index("fog")])
    assert "trained" in done.stdout
    assert list((tmp_path / "streams.json.parts").glob("*.npz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--protocol", "shuffled"), "unknown protocol 'shuffled'"),
        (("--batch", 8), "--batch is for the baselines; give --baselines as well"),
        (("--remeasure",), "--remeasure is for the baselines; give --baselines as well"),
    ],
)
def test_the_command_names_bad_options_in_one_line(image_folder, options, message):
    failed = invoke("bench", "streams", "--data", image_folder, *options, check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
