"""The tables of docs/benchmarks/drill.md."""

from collections.abc import Callable
from functools import partial
from typing import Any

from rws.benchmarks.common.tables import Column, columns, label
from rws.benchmarks.pages.results import lookup, matching, table


def _happened(case: dict[str, Any]) -> str:
    return f"{case['skipped'] or case['happened']}{'' if case['passed'] else ' **not kept**'}"


def _clips() -> list[dict[str, Any]]:
    return [case for result in matching("drill_video_*") for case in result["cases"]]


def _soak(result: str) -> list[tuple[str, str]]:
    soak: dict[str, Any] = lookup(f"{result}.soak")
    memory, ages = soak["memory_mb"], soak["age_ms"]

    def age(what: str) -> str:
        return f"{ages[f'{what}_p50']:.1f} / {ages[f'{what}_p95']:.1f}"

    received = f"{soak['received']:,} = {soak['frames']:,} + {soak['dropped']:,} + {soak['rejected']:,}"
    return [
        ("minutes", f"{soak['seconds'] / 60:.0f}"),
        ("frames per second, 640 x 480", f"{soak['fps']:.0f}"),
        ("frames sent by the camera", f"{soak['sent']:,}"),
        ("received = results + dropped + rejected", received),
        ("from the camera's image to the client's, ms, p50 / p95", age("camera_to_client")),
        ("from arrival to result, ms, p50 / p95", age("arrival_to_result")),
        ("memory after the warm-up / at the end, MB", f"{memory['after_warm_up']:.1f} / {memory['at_end']:.1f}"),
        *((promise, "yes" if kept else "**no**") for promise, kept in soak["promises"].items()),
    ]


_STREAM_COLUMNS = (
    columns({"streams": "streams", "visibly wrong": "wrong", "of these passed": "wrong_passed"}, ","),
    columns({"good": "good", "of these rejected": "good_rejected"}, ","),
    columns({"equal": "equal", "of these rejected": "equal_rejected", "errors": "errors"}, ","),
)


def _hostile() -> list[tuple[str, str]]:
    soak: dict[str, Any] = lookup("soak_hostile.soak")
    attacked = soak["hostile"]
    return [
        ("deaths of the camera / reconnects", f"{attacked['deaths']} / {soak['reconnects']}"),
        ("bad bundles / refused", f"{len(attacked['bad_bundles'])} / {attacked['bundles_refused']}"),
        ("good bundles / taken", f"{attacked['good_bundles']} / {attacked['bundles_swapped']}"),
        ("hostile connections", f"{sum(attacked['connections'].values()):,}"),
        *((f"refused: `{reason}`", f"{count:,}") for reason, count in sorted(attacked["refused"].items())),
    ]


TABLES = {
    "drill": table(
        "drill.cases",
        label("fault", "name"),
        label("promised", lambda case: case["promised"].rstrip(".")),
        label("happened", _happened),
        columns({"in": "frames_in", "out": "frames_out", "dropped": "dropped"}, ","),
        Column("rejected", lambda case: sum(case["rejected_by_reason"].values()), ","),
    ),
    "clips": table(_clips, label("clip", "video"), label("fault", "name"), label("happened", _happened)),
    "soak": table(partial(_soak, "soak"), label("one stream", 0), Column("", 1)),
    "hostile": table(lambda: [*_hostile(), *_soak("soak_hostile")], label("one stream", 0), Column("", 1)),
}
TABLES |= {
    "damaged_images": table(
        "damage.images",
        label("JPEGs", "source"),
        columns({"damaged": "damaged", "reported": "reported", "of these passed": "reported_passed"}, ","),
        columns({"silent and visible": "silent_visible", "of all visible": "visible"}, ","),
        columns({"good": "good", "of these rejected": "good_rejected", "errors": "errors"}, ","),
    ),
    "damaged_streams": table("damage.streams", label("H.264", "name"), *_STREAM_COLUMNS),
    "damaged_stream_kinds": table("damage.stream_kinds", label("damage", "name"), *_STREAM_COLUMNS),
}


_FAULTS = {
    "none": "works",
    "kill": "loses power",
    "hang": "sends nothing any more, and stays connected",
    "flood": "sends 200 images per second",
    "resize": "changes its size at every other image",
    "corrupt": "sends half images",
}
_RUNS = {"together": "eight cameras, one run", "separate": "eight runs at once", "one": "one camera"}
_UNHARMED = "the least rate of the others, per second"
CAMERA_TABLES = {
    "ways": table(
        "several_cameras.ways",
        label("", lambda row: _RUNS[row["way"]]),
        columns({"processors": "cpu", "of each round": lambda row: _each(row, "cpu")}),
        columns({"memory, MB": "memory_mb"}, ".0f"),
        columns({"age, p95, ms": "age_p95_ms", "of the worst camera": "age_p95_ms_worst"}, ".0f"),
        columns({"changes of the weights per second": "weight_changes_per_s"}, ".1f"),
        columns({"frames": "frames", "dropped": "dropped"}, ","),
    ),
    "faults": table(
        "several_cameras.faults",
        label("the eighth camera", lambda row: _FAULTS[row["fault"]]),
        columns({_UNHARMED: "others_fps", "their age, p95, ms": "others_age_p95_ms", "dropped": "others_dropped"}),
        columns({"its results": "its_frames", "rejected": "its_rejected"}),
        label("every frame accounted for", lambda row: "yes" if row["accounted"] else "**no**"),
    ),
    "broker": table(lambda: _broker(), label("one run, eight cameras", 0), Column("", 1)),
    "batching": table(
        "several_cameras.batching",
        label("bundle", "bundle"),
        columns({"threads": "threads"}),
        Column("eight images at once / one by one", "ratio", ".2f"),
        label("quartiles", lambda row: " to ".join(f"{value:.2f}" for value in row["quartiles"])),
    ),
}


def _broker() -> list[tuple[str, str]]:
    found = lookup("broker")
    memory = found["memory_mb"]
    parts = [f"{found[key]:,} {key}" for key in ("written", "dropped", "waiting", "writing", "unaccounted")]
    return [
        ("messages offered", f"{found['accepted']:,} = {' + '.join(parts)}"),
        ("failed attempts to connect", f"{found['failures']}"),
        ("memory, MB, before, at the end of the outage, at the end", " / ".join(f"{mb:.0f}" for mb in memory.values())),
        ("cameras whose state at the broker is online at the end", f"{found['cameras_online']} of {found['cameras']}"),
        ("results, dropped frames", f"{found['frames']:,}, {found['dropped_frames']:,}"),
    ]


def _each(row: dict[str, Any], key: str) -> str:
    return ", ".join(f"{value:.2f}" for value in row[f"{key}_of_each_round"])


def _share(part: str, whole: str) -> Callable[[], str]:
    return lambda: f"{sum(lookup(f'damage.streams.{part}')) / sum(lookup(f'damage.streams.{whole}')):.1%}"


def _passed_flipped() -> int:
    return sum(row["wrong_passed"] for row in lookup("damage.stream_kinds") if row["name"] == "flip")


VALUES: dict[str, Callable[[], str]] = {
    "damaged streams passed": _share("wrong_passed", "wrong"),
    "damaged streams rejected": _share("good_rejected", "good"),
    "damaged streams equal rejected": _share("equal_rejected", "equal"),
    "damaged streams passed flipped": lambda: str(_passed_flipped()),
    "damaged streams passed else": lambda: str(lookup("damage.streams.wrong_passed.sum") - _passed_flipped()),
    "clip count": lambda: str(len(matching("drill_video_*"))),
    "clip cases": lambda: str(len(_clips())),
    "clip cases passed": lambda: str(sum(case["passed"] for case in _clips())),
}
