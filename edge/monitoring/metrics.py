"""A run in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from rws.edge.monitoring.monitor import Monitor
from rws.oracle.belief import CLEAN


def registry(monitor: Monitor) -> CollectorRegistry:
    """What `/metrics` shows: the run, and the memory and processor time of its process."""
    found = CollectorRegistry()
    found.register(RunCollector(monitor))
    ProcessCollector(registry=found)
    return found


class RunCollector(Collector):
    """Reads a monitor each time it is asked."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        try:
            self.version = version("rws-edge")
        except PackageNotFoundError:  # a checkout that was not installed
            self.version = ""

    def collect(self) -> Iterator[Metric]:
        """All metrics of the moment; those of a result only once there is one."""
        report = self.monitor.snapshot()
        source, counts, result = report["source"], report["counts"], report["result"]
        info = {"bundle": report["bundle"], "way": report["way"], "version": self.version}
        yield InfoMetricFamily("rws", "What runs", value=info)
        yield _gauge("rws_uptime_seconds", "Time since the start", report["uptime_s"])
        yield _counter("rws_frames_received", "Frames that came, whatever became of them", source["received"])
        yield _counter("rws_frames_delivered", "Frames that reached the oracle", source["delivered"])
        yield _counter("rws_frames_dropped", "Whole frames skipped because newer ones came", source["dropped"])
        yield _counters("rws_frames_rejected", "Frames kept from the oracle", "reason", source["rejected"])
        yield _counter("rws_source_reconnects", "How often the source was opened anew", source["reconnects"])
        yield _gauge(
            "rws_source_up", "1 while the source runs, 0 while it is lost or over", source["state"] == "running"
        )
        yield _counter("rws_results", "Frames classified", counts["results"])
        yield _counter("rws_mix_changes", "How often the weights were changed", counts["switches"])
        yield _counters("rws_predictions", "Frames by predicted class", "label", counts["classes"])
        yield _counters("rws_corruptions", "Frames by most probable corruption", "corruption", counts["corruptions"])
        yield _counters("rws_events", "Other events", "event", report["events"])
        if result is not None:
            yield from _of_result(result, report["since_result_s"])


def _of_result(result: Mapping[str, Any], age: float) -> Iterator[Metric]:
    belief = result["belief"]
    # A signature that is not in effect stands at 0: a series that vanishes cannot be drawn or alerted on.
    alphas = dict.fromkeys((name for name in belief["probability"] if name != CLEAN), 0.0) | result["mix"]
    seconds = {stage: ms / 1e3 for stage, ms in result["times_ms"].items()}
    yield _gauge("rws_result_age_seconds", "Time since the newest result", age)
    yield _gauge("rws_severity", "Severity of the newest frame's most probable corruption, 0 to 5", belief["severity"])
    yield _gauge(
        "rws_expected_severity",
        "Expected severity of the newest frame over all types, clean counting as 0, 0 to 5",
        belief["expected_severity"],
    )
    yield _gauges("rws_belief_probability", "What the oracle believes", "corruption", belief["probability"])
    yield _gauges("rws_alpha", "Strength of each signature in the weights", "signature", alphas)
    yield _gauges("rws_stage_seconds", "Time of each stage for the newest frame", "stage", seconds)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
