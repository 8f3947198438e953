import json
import re

import pytest

from rws.benchmarks.baselines.cost import ENGINES
from rws.benchmarks.baselines.registry import BASELINES, COMPARED
from rws.benchmarks.oracle.policies import FAMILIES, RULES
from rws.benchmarks.pages import results as page_results
from rws.benchmarks.pages.accuracy import README_TABLES
from rws.benchmarks.pages.oracle import CHOSEN, METHODS, PAIRS, POLICIES, STREAM_TABLES, TABLES
from rws.benchmarks.pages.render import evaluate

MADE = {"command": "rws …", "commit": "1234567", "machine": {"processor": "a CPU"}, "seed": 3}


def scores(accuracy):
    both = {"type_accuracy": accuracy, "type_accuracy_merged": accuracy + 0.5}
    return {**both, "clean_recall": 97.5, "per_severity": {str(severity): both for severity in range(1, 6)}}


def replayed(total):
    shares = {"policy": 0.0, "severity": 0.125, "type": -0.5, "clean": 0.25, "total": total}
    merged = [["defocus_blur", "gaussian_blur", 1]]
    return {
        "images": 2000,
        "severities": [1, 2, 3, 4, 5],
        "regret_split": {**shares, "clean_frames_patched": 0.15},
        "oracle": {**scores(80.25), "merged": merged, "severity_mae": 0.5, "after_8_frames": scores(95.25)},
    }


def oracle_cost():
    def row(model, case, ratio):
        return {"model": model, "case": case, "ms": 0.0625, "ratio": ratio, "low": ratio - 0.125, "high": ratio + 0.125}

    cases = ("network", "observe", "whole", "in_turn")
    return {"bytes": 123456, "rows": [row(model, case, 0.5) for model in ("vgg16", "cifar10") for case in cases]}


def policies():
    def row(policy, rule="", **more):
        return {"policy": policy, "rule": rule, "ta": 89.5, "ra": 86.0, "ra_5": 83.5, "regret": 0.1} | more

    chosen = {"microseconds": 8.6, "validation": {"ta_loss": 0.02, "ra": 86.25}, "clean_weight": 0.125}
    rows = [row(name) for name in ("std", "perfect", "best")]
    rows += [row("shipped", kind="weighted", threshold=0.1, **chosen)]
    rows += [row(family, rule, threshold=0.2, **chosen) for family in FAMILIES for rule in RULES]
    counts = {"images": 200, "validation_images": 400, "allowed_ta_loss": 0.2}
    return {"rows": rows, "winner": {"policy": "weighted", "rule": "both"}, **counts}


def pairs():
    scores = {"accuracy": 65.0, "accuracy_3": 70.0, "accuracy_5": 60.0}
    asked = ("std", "shipped", "expected", "composed")
    return {
        "rows": [{"arm": arm, **scores} | ({"ta": 89.0, "single": 87.0} if arm in asked else {}) for arm in PAIRS],
        "validation": {way: {"ta": 90.0, "single": 88.0, "pairs": 66.25} for way in asked},
        "severities": [3, 5],
        "per_pair": [["fog", "snow"]],
        "images": 200,
        "validation_images": 100,
    }


def cameras():
    clear = {"images": 24, "clean": 99.0, "clean_interval": [90.0, 99.9], "severe": 0.5, "severe_interval": [0.0, 2.0]}
    types = {"type": 80.0, "type_severity_5": 90.0, "called_clean": 7.0, "severity_error": 0.625}
    real = {
        "images": 48,
        "named": 50.0,
        "named_interval": [40.0, 60.0],
        "false_alarms": 1.0,
        "as": {"rain": 24, "clean": 4},
    }
    ms = {"view_ms": 0.5, "oracle_ms": 2.5, "model_ms": 5.0, "of_model": 0.5, "of_frame": 0.25}
    agreement = {"std": 11.0, "trained": 12.0, "named": 15.0}
    return {
        "clear": [{"source": "kodak", **clear}],
        "types": [{"size": 224, **types}],
        "dark": real,
        "rain": real,
        "agreement": [{"set": "low_light", "images": 27, "boxes": 18, "patched": 80.0, **agreement}],
        "times": [{"width": 640, "height": 480, **ms}],
    }


def clips():
    observed = {"regret": 5.0, "named": 75.0, "patched": 50.0, "delay_s": 0.4, "never_named": 0}
    f1 = dict.fromkeys(("std", "perfect", "best", "frame", "trained"), 60.0)
    return {
        "fps": 5.0,
        "rows": [{"name": "lens_dirt", "f1": f1, "frame": observed, "trained": observed | {"delay_s": None}}],
        "clips": [{"clip": "street.mp4", "stretches": [{"name": "clean", "f1": f1, "trained": observed}]}],
    }


def unseen():
    def row(name, neighbour):
        ways = {"std": [60.0, 50.0], "ours": [70.0, 62.0], "borrowed": [72.0, 64.0], "own": [80.0, 80.0]}
        return {"corruption": name, **ways, "gain": 11.0, "worst": -1.5, "neighbour": neighbour}

    return {
        "rows": [row("glass_blur", "zoom_blur"), row("saturate", None)],
        "missing": ["jpeg_compression"],
        "mean": {"std": 55.0, "ours": 66.0, "borrowed": 68.0, "own": 80.0},
        "gain_of_borrowing": 11.0,
        "worst_cell": {"corruption": "saturate", "gain": -1.5},
        "ta_loss": 0.25,
    }


def streams():
    delay = {"median": 0.0, "mean": 0.62, "p95": 2.75, "never_right": 0.0, "blocks": 26}
    chooses = {"mix_change_rate": 3.42, "right": 98.25, "delay": delay}
    rows = []
    for protocol in ("continual", "mixed"):
        for method in ("std", "always", "perfect", "best", "frame", "trained"):
            row = {"protocol": protocol, "method": method, "batch": 1, "ra": 82.0, "ta": 89.0, "regret": 0.5}
            row |= chooses if method in ("perfect", "best", "frame", "trained") else {}
            rows.append(row | ({"delay": None} if protocol == "mixed" and "delay" in row else {}))
    return {"rows": rows}


def baselines():
    rows = streams()["rows"]
    for batch in (1, 64):
        for index, method in enumerate(BASELINES):
            for protocol, ta in (("continual", 70.0), ("mixed", 50.0 + index)):
                rows.append({"protocol": protocol, "method": method, "batch": batch, "ra": 60.0, "ta": ta})
    costs = []
    for engine, names in ENGINES.items():
        for method in names:
            time = {"ms": 0.5, "ratio": 1.0, "low": 1.0, "high": 1.0}
            time |= {} if method == "std" else {"ratio": 2.25, "low": 2.125, "high": 2.5}
            memory = {"carried": 2_500_000} | ({"held": 10_000_000, "peak": 0} if engine == "torch" else {})
            costs.append({"engine": engine, "method": method, "batch": 1, **time, **memory})
    return {"rows": rows, "cost": {"threads": 1, "rows": costs}}


RESULTS = {
    "replay_all": replayed(-0.125),
    "replay_severity5": replayed(0.0),
    "oracle_cost": oracle_cost(),
    "policies": policies(),
    "pairs": pairs(),
    "unseen": unseen(),
    "cameras": cameras(),
    "streams": streams(),
    "clips": clips(),
    "baselines": baselines(),
}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(MADE | result))
    monkeypatch.setattr(page_results, "RESULTS", tmp_path)
    return tmp_path


def cells(text):
    """The rows of all tables, without their heads."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rules = [number for number, row in enumerate(rows) if row[0] == "---"]
    return [row for number, row in enumerate(rows) if number not in rules and number + 1 not in rules]


ALL_TABLES = {**TABLES, **STREAM_TABLES}


@pytest.mark.parametrize("name", ALL_TABLES)
def test_every_table_is_whole(name):
    text = ALL_TABLES[name]()
    assert "None" not in text
    for table in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
        lines = table.splitlines()
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1


def test_every_method_has_a_name():
    assert {*BASELINES, *COMPARED, "frame", "trained", "perfect", "best"} == set(METHODS)
    assert {method for names in ENGINES.values() for method in names} <= set(METHODS)
    assert set(FAMILIES) == set(POLICIES)
    assert set(RULES) == set(CHOSEN)


def test_types_and_regret():
    rows = cells(TABLES["types"]())
    assert rows[0] == ["one frame, raw", *["80.2"] * 6, "97.5"]
    assert rows[3] == ["8 frames of one stream, merged", *["95.8"] * 6, "97.5"]
    assert evaluate("merged types") == "defocus blur and gaussian blur at severity 1"
    assert cells(TABLES["regret"]())[1] == ["severities 1–5", "0.000", "0.125", "-0.500", "0.250", "-0.125", "0.150"]


def test_the_oracles_time_is_next_to_each_models():
    rows = cells(TABLES["oracle cost"]())
    assert rows[1] == ["**the oracle: network and belief**", "0.062", *["0.500 (0.375–0.625)"] * 2]
    assert rows[3][1] == ""
    assert evaluate("oracle_cost.bytes ,") == "123,456"


def test_an_oracle_of_camera_frames_is_shown_with_its_intervals():
    assert cells(TABLES["cameras clear"]()) == [["kodak", "24", "99.0 (90.0–99.9)", "0.5 (0.0–2.0)"]]
    assert cells(TABLES["cameras real"]())[1][1:] == ["48", "50.0 (40.0–60.0)", "1.0", "rain"]
    assert cells(TABLES["cameras agreement"]()) == [["low light", "27", "18", "11.0", "12.0", "15.0", "80"]]
    assert cells(TABLES["cameras time"]()) == [["640 x 480", "0.50", "2.50", "5.00", "50.0%", "25.0%"]]


def test_a_corruption_that_is_never_named_has_no_delay():
    assert cells(STREAM_TABLES["clips"]()) == [["lens dirt", *["60.0"] * 5, "75", "50", ""]]
    assert cells(STREAM_TABLES["clips clear"]()) == [["street", "75.0", "50.0", "60.0"]]


def test_where_no_two_are_the_same_picture(results):
    replay = replayed(0.0)
    replay["oracle"]["merged"] = []
    (results / "replay_all.json").write_text(json.dumps(MADE | replay))
    assert evaluate("merged types") == "none"


def test_policies_show_how_they_were_chosen():
    text = TABLES["policies"]()
    rows = {row[0]: row[1:] for row in cells(text)}
    assert len(rows) == 4 + len(FAMILIES) * len(RULES)
    own = ["0.10", "0.125", "0.02", "86.25", "89.50", "83.50", "86.00", "0.10", "9"]
    assert rows["**the bundle's policy: weighted composition**"] == own
    assert rows["no patch"] == ["", "", "", "", "89.50", "83.50", "86.00", "0.10", ""]
    assert evaluate("policies.allowed_ta_loss g") == "0.2"
    assert evaluate("best policy") == "weighted composition, weight on clean and threshold"


def test_no_policy_wins_where_all_lose_too_much(results):
    (results / "policies.json").write_text(json.dumps(MADE | policies() | {"winner": None}))
    assert evaluate("best policy") == "none loses as little"


def test_pairs_have_a_second_table_of_validation():
    rows = cells(TABLES["pairs"]())
    assert len(rows) == len(PAIRS)
    assert rows[1][1:] == ["65.00", "70.00", "60.00", "", ""]
    rows = cells(TABLES["pairs validation"]())
    assert len(rows) == 4
    assert rows[1] == ["**the bundle's policy**", "66.25", "88.00", "90.00"]


def test_unseen_names_neighbours_where_one_helps():
    rows = cells(TABLES["unseen"]())
    assert rows[0] == ["glass blur", "55.00", "66.00", "68.00", "80.00", "+11.00", "-1.50", "zoom blur"]
    assert [row[-1] for row in rows[1:]] == ["none", "", ""]
    assert rows[2] == ["jpeg compression: not done", *[""] * 7]


def test_streams_show_the_delay_where_there_is_one():
    rows = {row[0]: row[1:] for row in cells(STREAM_TABLES["streams"]())}
    assert len(rows) == 8
    own = rows["continual, **ours, with the temporal filter**"]
    assert own == ["82.00", "0.50", "89.00", "98.2", "3.4", "0 / 0.62 / 2.75"]
    assert rows["mixed, **ours, with the temporal filter**"][-1] == ""


def test_baselines_have_the_ta_of_each_protocol():
    rows = {(row[0], row[1]): row[2:] for row in cells(STREAM_TABLES["baselines"]())}
    mixed = f"60.0 / {50 + list(BASELINES).index('tent')}.0"
    assert rows[METHODS["tent"], "64"] == ["", mixed, "60.0 / 70.0", "", "", ""]
    assert rows[METHODS["frame"], "1"] == ["", "82.0 / 89.0", "82.0 / 89.0", "", "", ""]
    rows = {(row[0], row[1]): row[2:] for row in cells(STREAM_TABLES["baselines cost"]())}
    ratio = "2.250 (2.125–2.500)"
    assert rows[METHODS["bn_batch"], "Torch"] == ["1", "0.500", ratio, "2.50", "10.00", "0.00"]
    assert rows[METHODS["std"], "ONNX Runtime"] == ["1", "0.500", "1", "2.50", "", ""]
    assert rows[METHODS["std_unfolded"], "Torch"][2] == ratio


def test_the_readme_compares_with_the_strongest_baseline(results):
    rows = [
        {"protocol": "iid", "method": method, "batch": batch, "ra": ra + batch, "ta": 90.0}
        for batch in (1, 64)
        for method, ra in {"augmented": 80.0, "perfect": 82.0, "frame": 81.0, "std": 50.0}.items()
    ]
    (results / "baselines.json").write_text(json.dumps(MADE | {"rows": rows}))
    found = {row[0]: row[1:] for row in cells(README_TABLES["results"]())}
    assert list(found.values()) == [["90.0", "51.0"], ["90.0", "82.0"], ["90.0", "83.0"], ["90.0", "81.0"]]
    assert list(found)[3] == "baseline: one model, trained with all corruptions"


def test_a_value_is_read_from_a_result_and_formatted():
    assert evaluate("replay_all.images ,") == "2,000"
    assert evaluate("pairs.per_pair.len") == "1"
    assert evaluate("unseen.rows.gain.sum .1f") == "22.0"
    assert evaluate("made unseen") == "[unseen.json](benchmarks/results/unseen.json), made at 1234567 (a CPU, seed 3)"
