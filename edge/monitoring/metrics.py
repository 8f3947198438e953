"""The Prometheus metrics of a run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from rws.edge.common.provenance import installed_version
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.run_status import RunStatus
from rws.records import SinkStatus


def registry(monitors: Mapping[str, Monitor]) -> CollectorRegistry:
    """Return what `/metrics` shows: the run, and the memory and processor time of its process.

    `monitors` are by the name of the camera, which is a label of its metrics, or by "", which adds no label.
    """
    found = CollectorRegistry()
    found.register(_RunCollector(monitors))
    ProcessCollector(registry=found)
    return found


Family = type[Counter | Gauge]


class _RunCollector(Collector):
    def __init__(self, monitors: Mapping[str, Monitor]) -> None:
        self.monitors, self.version = monitors, installed_version()

    def collect(self) -> Iterator[Metric]:
        statuses = {name: monitor.status() for name, monitor in list(self.monitors.items())}
        if not statuses:
            return
        first = next(iter(statuses.values()))
        info = {"bundle": first.bundle, "strategy": first.strategy, "version": self.version}
        yield InfoMetricFamily("rws", "Bundle, weight update and version in use", value=info)
        yield Gauge("rws_uptime_seconds", "Time since the start", max(status.uptime_s for status in statuses.values()))
        for kind, name, text, value in _NUMBERS:
            yield _of_cameras(kind, name, text, "", {camera: {"": value(one)} for camera, one in statuses.items()})
        for kind, name, text, label, values in _LABELLED:
            yield _of_cameras(kind, name, text, label, {camera: values(one) for camera, one in statuses.items()})
        yield from _of_sinks(first.sinks)
        results = {camera: one for camera, one in statuses.items() if one.result and one.since_result_s is not None}
        if results:
            yield from _of_results(results)


_NUMBERS: tuple[tuple[Family, str, str, Callable[[RunStatus], float]], ...] = (
    (Counter, "rws_frames_received", "Frames received", lambda status: status.source.received),
    (Counter, "rws_frames_delivered", "Frames delivered to the oracle", lambda status: status.source.delivered),
    (
        Counter,
        "rws_frames_dropped",
        "Frames skipped because newer ones were available",
        lambda status: status.source.dropped,
    ),
    (Counter, "rws_source_reconnects", "Times the source was reopened", lambda status: status.source.reconnects),
    (
        Gauge,
        "rws_source_up",
        "1 while the source runs, 0 while it is lost or ended",
        lambda status: status.source.state == "running",
    ),
    (Counter, "rws_results", "Frames with a result", lambda status: status.totals.results),
    (Counter, "rws_mix_changes", "Times the mix has changed", lambda status: status.totals.mix_changes),
)
_LABELLED: tuple[tuple[Family, str, str, str, Callable[[RunStatus], Mapping[str, float]]], ...] = (
    (Counter, "rws_frames_rejected", "Unusable frames by reason", "reason", lambda status: status.rejected_by_reason),
    (Counter, "rws_predictions", "Results by class seen", "label", lambda status: status.totals.classes),
    (
        Counter,
        "rws_corruptions",
        "Results by most probable corruption",
        "corruption",
        lambda status: status.totals.corruptions,
    ),
    (Counter, "rws_events", "Other events, such as a refused bundle", "event", lambda status: status.events),
)


def _of_sinks(sinks: Mapping[str, SinkStatus]) -> Iterator[Metric]:
    failures = {name: sink.failures for name, sink in sinks.items()}
    yield gauges("rws_sink_up", "1 while an output works", "output", {n: s.state == "up" for n, s in sinks.items()})
    yield counters("rws_sink_failures", "Times that an output has failed", "output", failures)
    writes = Counter("rws_sink_writes", "Frames (of a console: pieces of text) by outcome", labels=["output", "state"])
    for name, sink in sinks.items():
        for state in ("written", "dropped", "failed"):
            writes.add_metric([name, state], getattr(sink, state))
    yield writes


def _of_results(statuses: Mapping[str, RunStatus]) -> Iterator[Metric]:
    results = {camera: status.result for camera, status in statuses.items() if status.result is not None}
    beliefs = {camera: result.belief for camera, result in results.items()}
    ages = {camera: {"": status.since_result_s or 0.0} for camera, status in statuses.items()}
    yield _of_cameras(Gauge, "rws_result_age_seconds", "Time since the newest result", "", ages)
    severities = {camera: {"": belief.type_severity} for camera, belief in beliefs.items()}
    text = "Severity of the most probable corruption, 0 to 5"
    yield _of_cameras(Gauge, "rws_severity", text, "", severities)
    expected = {camera: {"": belief.expected_severity} for camera, belief in beliefs.items()}
    text = "Expected severity of the newest frame, 0 to 5"
    yield _of_cameras(Gauge, "rws_expected_severity", text, "", expected)
    probability = {
        camera: dict(zip(belief.names, belief.probability.tolist(), strict=True)) for camera, belief in beliefs.items()
    }
    text = "Probability of each corruption"
    yield _of_cameras(Gauge, "rws_belief_probability", text, "corruption", probability)
    # A signature that is not in effect has the value 0: a series that vanishes cannot be drawn or alerted on.
    alphas = {c: dict.fromkeys(r.belief.corruptions, 0.0) | dict(r.mix) for c, r in results.items()}
    yield _of_cameras(Gauge, "rws_alpha", "Strength of each signature in the weights", "signature", alphas)
    seconds = {c: {stage: ms / 1e3 for stage, ms in r.times_ms.items()} for c, r in results.items()}
    yield _of_cameras(Gauge, "rws_stage_seconds", "Time of each stage for the newest frame", "stage", seconds)


def _of_cameras(kind: Family, name: str, text: str, label: str, values: Mapping[str, Mapping[str, float]]) -> Metric:
    """Return a metric of {camera: {value of the label: number}}; "" as camera or label is none."""
    labels = [*(["camera"] if "" not in values else []), *([label] if label else [])]
    family = kind(name, text, labels=labels)
    for camera, numbers in values.items():
        for key, number in numbers.items():
            family.add_metric([*([camera] if camera else []), *([key] if label else [])], number)
    return family


def _labelled(kind: Family, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _of_cameras(kind, name, text, label, {"": values})


counters, gauges = partial(_labelled, Counter), partial(_labelled, Gauge)
