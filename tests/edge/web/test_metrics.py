import pytest
from prometheus_client.parser import text_string_to_metric_families

from rws.edge.web import PageServer
from rws.errors import FrameError
from rws.oracle.belief import certain
from rws.records import SinkStatus
from support.fakes import CORRUPTIONS, LEVELS, make_result
from support.http import get


def read(server, **headers):
    status, answered, body = get(server, "/metrics", **headers)
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    samples = {
        (item.name, *item.labels.values()): item.value for family in families.values() for item in family.samples
    }
    return answered, families, samples


@pytest.fixture
def server(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}) as server:
        yield server


def test_before_the_first_result(server):
    headers, families, samples = read(server)
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert samples["rws_results_total",] == 0
    assert samples["rws_source_up",] == 1
    assert "rws_result_age_seconds" not in families
    assert samples["process_resident_memory_bytes",] > 1e6


def test_the_metrics_of_outputs(server, monitor):
    _, families, _ = read(server)
    assert families["rws_sink_up"].samples == []
    full = SinkStatus("failing", "no space", 4, accepted=9, written=2, dropped=1, failed=6)
    monitor.sinks = lambda: {"csv": full, "jsonl": SinkStatus(accepted=9, written=9)}
    _, _, samples = read(server)
    assert (samples["rws_sink_up", "csv"], samples["rws_sink_up", "jsonl"]) == (0, 1)
    assert samples["rws_sink_failures_total", "csv"] == 4
    found = [samples["rws_sink_writes_total", "csv", state] for state in ("written", "dropped", "failed")]
    assert found == [2, 1, 6]


def test_the_metrics_of_a_run(server, monitor, source, clock):
    foggy = certain(CORRUPTIONS, LEVELS, "fog", 3.0)
    monitor.add(make_result(0, belief=certain(CORRUPTIONS, LEVELS, "clean"), label='a "<b>"\n\\'))
    monitor.add(make_result(1, belief=foggy, mix={"fog": 0.75, "own": 0.5}, changed=True))
    source.received, source.delivered, source.dropped, source.reconnects = 9, 2, 3, 1
    source.rejections.update(damaged=3, frozen=1)
    source.state = "reconnecting"
    monitor.reject(FrameError("bad_belief", "belief: the least number is nan"))
    monitor.count_event("bundle_swapped")
    clock.now += 4
    _, families, samples = read(server)
    assert samples["rws_frames_received_total",] == 9
    assert samples["rws_frames_delivered_total",] == 2
    assert samples["rws_frames_dropped_total",] == 3
    assert samples["rws_frames_rejected_total", "damaged"] == 3
    assert samples["rws_frames_rejected_total", "frozen"] == 1
    assert samples["rws_frames_rejected_total", "bad_belief"] == 1
    assert samples["rws_source_reconnects_total",] == 1
    assert samples["rws_source_up",] == 0
    assert samples["rws_results_total",] == 2
    assert samples["rws_mix_changes_total",] == 1
    assert samples["rws_predictions_total", 'a "<b>"\n\\'] == samples["rws_predictions_total", "cat"] == 1
    assert samples["rws_corruptions_total", "fog"] == samples["rws_corruptions_total", "clean"] == 1
    assert samples["rws_belief_probability", "fog"] == 1
    assert samples["rws_severity",] == samples["rws_expected_severity",] == 3
    assert [samples["rws_alpha", name] for name in ("fog", "snow", "own")] == [0.75, 0, 0.5]
    assert ("rws_alpha", "clean") not in samples
    assert samples["rws_stage_seconds", "predict"] == pytest.approx(0.002)
    assert samples["rws_result_age_seconds",] == 4
    assert samples["rws_events_total", "bundle_swapped"] == 1
    assert samples["rws_uptime_seconds",] == 4
    info = families["rws_info"].samples[0].labels
    assert (info["bundle"], info["strategy"]) == ("tiny", "live")
    assert set(info) == {"bundle", "strategy", "version"}
    assert all(family.documentation for family in families.values())


def test_openmetrics_on_request(server):
    status, headers, body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
