import csv
import re
from dataclasses import replace
from itertools import count, pairwise
from types import SimpleNamespace

import numpy as np
import onnx
import psutil
import pytest
import torch

from rws.benchmarks.common import sensors
from rws.benchmarks.common.models import load_model
from rws.benchmarks.latency import engines as latency_engines
from rws.benchmarks.latency import run as latency
from rws.benchmarks.latency.engines import (
    Engine,
    Setting,
    check_outputs,
    default_engines,
    expected_outputs,
    make_engine,
)
from rws.benchmarks.latency.options import LatencyOptions
from rws.benchmarks.latency.report import CSV_COLUMNS, csv_name, print_latency, write_rows
from rws.benchmarks.latency.run import PATCH_EVERY, SLOWER, EngineCase, measure_latency
from rws.benchmarks.latency.stages import FRAME_SIZE, ScheduledPolicy, write_video
from rws.edge.common.provenance import provenance
from rws.edge.pipeline import STAGES
from rws.edge.sources.open import open_source
from rws.errors import InputError, RwsError
from support import detectors
from support.command_line import invoke
from support.tiny import SIZE, network

# Compiling takes longer than everything else together; `torch` runs the same code.
ENGINES = tuple(name for name in default_engines("cpu") if name != "torch_compile")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(network(3, 4, seed=1), path)
    return load_model(path, layers=2)


@pytest.fixture
def setting(tiny, tmp_path):
    return Setting(tiny, 1, "cpu", tmp_path)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)


@pytest.fixture(scope="module")
def result(tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SUSTAINED_ROW_SECONDS", 0.02)
        lines = []
        options = LatencyOptions(engines=ENGINES, rounds=2, repeats=2, duration=0.05)
        found = provenance(seed=0) | measure_latency([tiny], options, lines.append)
    assert any("repeat 2 of 2" in line for line in lines)
    return found


def test_every_engine_is_measured_at_each_of_its_rates(result):
    assert result["left_out"] == []
    found = {(row["strategy"], row["patch_every"]) for row in result["rows"]}
    changing = {name for name in ENGINES if name != "untouched_again"}
    expected = {(name, every) for name in changing for every in PATCH_EVERY}
    expected -= {(name, 0) for name in ("reload", "reload_optimised", "sessions")}  # each is an untouched session
    assert found == expected | {("untouched", 0), ("untouched_again", 0)}
    assert len(result["rows"]) == len(found)


def test_rows_are_complete_and_their_ratios_lie_in_their_intervals(result):
    for row in result["rows"]:
        assert {*CSV_COLUMNS} == row.keys()
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["runs"] >= 2 * 2 * 3
        assert row["load_ms"] > 0
        assert row["warmup_ms"] > 0
        assert (row["model"], row["size"], row["threads"], row["provider"]) == ("tiny", SIZE, 1, "cpu")
    assert result["rows"][0]["strategy"] == "untouched"
    assert result["rows"][0]["ratio"] == 1


def test_the_change_of_mix_is_reported_separately(result):
    changes = {row["strategy"]: row for row in result["changes"]}
    assert changes.keys() == set(ENGINES) - {"untouched_again"}
    frames = {row["strategy"]: row for row in result["rows"] if row["patch_every"] == 1}
    for name, row in changes.items():
        assert 0 < row["p50_ms"] < frames[name]["p50_ms"]
        assert 0 < row["alone_p50_ms"] <= row["alone_p95_ms"]
        for slower in (*SLOWER, *(f"alone_{slower}" for slower in SLOWER)):
            assert row[f"{slower}_ratio_low"] <= row[f"{slower}_ratio"] <= row[f"{slower}_ratio_high"]
    assert changes["reload"]["reload_ratio"] == changes["load_state_dict"]["load_state_dict_ratio"] == 1


def test_the_whole_frame_has_all_of_its_stages(result):
    rows = {(row["patch_every"], row["stage"]): row for row in result["stages"]}
    assert rows.keys() == {(every, s) for every in PATCH_EVERY for s in (*STAGES, "whole", "whole_with_read")}
    for every in PATCH_EVERY:
        assert rows[every, "whole"]["ratio"] < rows[every, "whole_with_read"]["ratio"]
        assert rows[every, "predict"]["ratio"] is None
        assert rows[every, "predict"]["p50_ms"] < rows[every, "whole"]["p50_ms"]


def test_sustained_load_and_platform(result):
    assert len(result["sustained"]) >= 2
    for row in result["sustained"]:
        assert row["frames"] > 0
        assert {"seconds", "p50_ms", "p99_ms", "clock_mhz", "temperature_c", "power_w", "strategy"} <= row.keys()
    assert result["platform"]["cores"] >= 1
    assert result["platform"]["before"].keys() == {"clock_mhz", "temperature_c", "power_w"}
    assert "session.run" in result["baseline"]
    assert result["weights"] == {f"tiny:{SIZE}": "the file’s weights, random signatures"}


def test_results_are_written_and_printed(result, tmp_path, capsys):
    from rich.console import Console

    name = csv_name(result)
    write_rows(tmp_path / "out" / name, result)
    assert re.fullmatch(r"latency-[\w.]+-cpu-ort[\d.]+-torch[\w.]+\.csv", name)
    with (tmp_path / "out" / name).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["strategy"] for row in rows] == [row["strategy"] for row in result["rows"]]
    print_latency(result, Console(width=80))
    text = capsys.readouterr().out
    assert all(word in text for word in ("load_state_dict", "preprocess", "sustained", "ONNX Runtime session"))


@pytest.mark.parametrize("kind", ["stale", "wrong"])
def test_an_engine_with_wrong_outputs_is_refused(kind, setting, x):
    clean, patched = expected_outputs(setting, x)
    assert np.abs(patched - clean).max() > 0
    honest = make_engine("live", setting)
    check_outputs(honest, x, clean, patched)
    broken = replace(
        honest,
        predict=(lambda x: clean) if kind == "stale" else (lambda x: honest.predict(x) + np.float32(1)),
    )
    with pytest.raises(RwsError, match="patched output is wrong" if kind == "stale" else "clean output is wrong"):
        check_outputs(broken, x, clean, patched)


@pytest.mark.slow
def test_an_engine_that_cannot_run_is_listed_with_its_reason(tiny, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10, total=10))
    options = LatencyOptions(engines=("sessions", "torch_cuda_graph"), rounds=1, repeats=2)
    found = measure_latency([tiny], options)
    assert [row["strategy"] for row in found["rows"]] == ["untouched"]
    reasons = {row["strategy"]: row["reason"] for row in found["left_out"]}
    assert reasons.keys() == {"sessions", "torch_cuda_graph"}
    assert "GiB" in reasons["sessions"]


def test_each_change_is_to_another_mix(setting, x):
    numbers = []
    engine = Engine("fake", lambda x: x, numbers.append, "cpu")
    counter = count()
    cases = [EngineCase(engine, every, setting, x, counter) for every in (10, 1, 0)]
    for case in (*cases, *cases):
        case()
    assert None in numbers
    assert all(a != b for a, b in pairwise(numbers) if a is not None)
    assert {number for number in numbers if number is not None} == set(range(len(setting.mixes)))


@pytest.mark.parametrize(("every", "expected"), [(0, [None] * 6), (1, [1, 2, 3, 1, 2, 3]), (3, [0, 0, 1, 1, 1, 2])])
def test_the_schedule_decides_the_mix_and_the_policy_still_runs(every, expected):
    asked = []
    policy = SimpleNamespace(choose=asked.append, reset=lambda: None)
    mixes = [{name: 1.0} for name in ("a", "b", "c")]
    scheduled = ScheduledPolicy(policy, mixes)
    scheduled.start(every, settle=2)
    answers = [scheduled.choose(belief) for belief in range(6)]
    assert answers == [{} if number is None else mixes[number % 3] for number in expected]
    assert asked == list(range(6))


def test_a_detector_is_measured_in_the_frame_loop_too():
    options = LatencyOptions(engines=("live",), rounds=1, repeats=1)
    found = measure_latency([load_model(detectors.MODEL, layers=3)], options)
    assert found["left_out"] == []
    assert {row["strategy"] for row in found["stages"]} == {"live"}


def test_the_video_is_of_real_size_and_moves(tmp_path):
    with open_source(write_video(tmp_path / "frames.mp4", frames=3)) as source:
        frames = [frame.image for frame in source]
    assert [frame.shape for frame in frames] == 3 * [(*FRAME_SIZE, 3)]
    assert frames[0].std() > 20
    assert not np.array_equal(frames[0], frames[2])


def test_a_source_that_is_too_short_is_refused(tiny, tmp_path):
    source = str(write_video(tmp_path / "short.mp4", frames=4))
    with pytest.raises(InputError, match="fewer than 7 frames"):
        measure_latency([tiny], LatencyOptions(engines=("untouched",), rounds=1, repeats=1, source=source))


def test_options_are_checked():
    with pytest.raises(InputError, match="unknown strategy 'fast'"):
        LatencyOptions(engines=("fast",))
    with pytest.raises(InputError, match="expected cpu or cuda"):
        LatencyOptions(device="tpu")
    assert LatencyOptions(engines=("untouched", "live", "live")).compared == ("live",)
    assert "torch_cuda_graph" not in LatencyOptions().compared


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_in_one_line(tmp_path):
    done = invoke("bench", "gpu", "--out", tmp_path / "out", check=False)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_jetson_is_read_through_jtop():
    jetson = SimpleNamespace(
        cpu={"cpu": [{"freq": {"cur": 1_510_000}}, {"freq": {"cur": 729_000}}, {}]},
        gpu={"gpu": {"freq": {"cur": 1_020_000}}},
        temperature={"cpu": {"temp": 51.5, "online": True}, "cv0": {"temp": -256, "online": False}},
        power={"tot": {"power": 7430}},
    )
    assert sensors.read_jetson(jetson, "cpu") == (1510, 51.5, 7.43)
    assert sensors.read_jetson(jetson, "cuda") == (1020, 51.5, 7.43)


def test_a_gpu_is_read_through_nvml_and_unknown_readings_are_none(monkeypatch):
    class NVMLError(Exception):
        pass

    def unknown(handle):
        raise NVMLError

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1234": "handle"}[uuid],
        nvmlDeviceGetClockInfo=lambda handle, clock: 1980,
        nvmlDeviceGetTemperature=lambda handle, sensor: 43,
        nvmlDeviceGetPowerUsage=unknown,
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    assert sensors.read_nvml(nvml) == (1980, 43, None)


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_cuda_provider_that_does_not_start_is_no_baseline(setting, monkeypatch):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(latency_engines.onnxruntime, "get_available_providers", lambda: providers)
    latency_engines.cuda_starts.cache_clear()
    cuda = replace(setting, device="cuda")
    assert not cuda.onnx_runs  # ONNX Runtime takes the CPU, with a warning
    assert "does not start" in cuda.baseline
    latency_engines.cuda_starts.cache_clear()


def test_the_gpu_baseline_without_onnx_runtimes_provider(setting):
    cuda = replace(setting, device="cuda")
    assert cuda.onnx_runs == ("CUDAExecutionProvider" in latency_engines.onnxruntime.get_available_providers())
    if not cuda.onnx_runs:
        assert "Torch module, eager" in cuda.baseline
        with pytest.raises(RwsError, match="no CUDA provider"):
            make_engine("live", cuda)
