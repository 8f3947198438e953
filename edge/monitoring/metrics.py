"""The Prometheus metrics of a run."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from rws.edge.monitoring.monitor import Monitor
from rws.edge.pipeline import Result


def registry(monitor: Monitor) -> CollectorRegistry:
    """Return what `/metrics` shows: the run, and the memory and processor time of its process."""
    found = CollectorRegistry()
    found.register(_RunCollector(monitor))
    ProcessCollector(registry=found)
    return found


def installed_version() -> str:
    """Return the version of this package; "" if it is a checkout that was not installed."""
    with suppress(PackageNotFoundError):
        return version("rws-edge")
    return ""


class _RunCollector(Collector):
    def __init__(self, monitor: Monitor) -> None:
        self.monitor, self.version = monitor, installed_version()

    def collect(self) -> Iterator[Metric]:
        status = self.monitor.status()
        source, totals = status.source, status.totals
        info = {"bundle": status.bundle, "strategy": status.strategy, "version": self.version}
        yield InfoMetricFamily("rws", "Bundle, weight update and version in use", value=info)
        yield Gauge("rws_uptime_seconds", "Time since the start", status.uptime_s)
        yield Counter("rws_frames_received", "Frames received", source.received)
        yield Counter("rws_frames_delivered", "Frames delivered to the oracle", source.delivered)
        yield Counter("rws_frames_dropped", "Frames skipped because newer ones were available", source.dropped)
        yield counters("rws_frames_rejected", "Unusable frames by reason", "reason", status.rejected_by_reason)
        yield Counter("rws_source_reconnects", "Times the source was reopened", source.reconnects)
        yield Gauge("rws_source_up", "1 while the source runs, 0 while it is lost or ended", source.state == "running")
        yield Counter("rws_results", "Frames with a result", totals.results)
        yield Counter("rws_mix_changes", "Times the weights were changed", totals.mix_changes)
        yield counters("rws_predictions", "Results by class seen", "label", totals.classes)
        yield counters("rws_corruptions", "Results by most probable corruption", "corruption", totals.corruptions)
        yield counters("rws_events", "Other events, such as a refused bundle", "event", status.events)
        sinks = status.sinks
        failures = {name: sink.failures for name, sink in sinks.items()}
        yield gauges("rws_sink_up", "1 while an output works", "output", {n: s.state == "up" for n, s in sinks.items()})
        yield counters("rws_sink_failures", "Times that an output has failed", "output", failures)
        writes = Counter(
            "rws_sink_writes", "Frames (of a console: pieces of text) by outcome", labels=["output", "state"]
        )
        for name, sink in sinks.items():
            for state in ("written", "dropped", "failed"):
                writes.add_metric([name, state], getattr(sink, state))
        yield writes
        if status.result is not None and status.since_result_s is not None:
            yield from _of_result(status.result, status.since_result_s)


def _of_result(result: Result, age: float) -> Iterator[Metric]:
    belief = result.belief
    probability = dict(zip(belief.names, belief.probability.tolist(), strict=True))
    # A signature that is not in effect has the value 0: a series that vanishes cannot be drawn or alerted on.
    alphas = dict.fromkeys(belief.corruptions, 0.0) | dict(result.mix)
    seconds = {stage: ms / 1e3 for stage, ms in result.times_ms.items()}
    yield Gauge("rws_result_age_seconds", "Time since the newest result", age)
    yield Gauge("rws_severity", "Severity of the most probable corruption, 0 to 5", belief.type_severity)
    yield Gauge("rws_expected_severity", "Expected severity of the newest frame, 0 to 5", belief.expected_severity)
    yield gauges("rws_belief_probability", "Probability of each corruption", "corruption", probability)
    yield gauges("rws_alpha", "Strength of each signature in the weights", "signature", alphas)
    yield gauges("rws_stage_seconds", "Time of each stage for the newest frame", "stage", seconds)


def _labelled(kind: type[Counter | Gauge], name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = kind(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


counters, gauges = partial(_labelled, Counter), partial(_labelled, Gauge)
