"""All cameras of a run at a glance, as the page of several cameras shows them."""

import time
from collections.abc import Mapping

from rws.edge.common.provenance import installed_version
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.run_status import RunStatus
from rws.records import utc


def overview(monitors: Mapping[str, Monitor], sign_out: bool) -> dict[str, object]:
    """Return what `overview/1` documents, in plain types."""
    cameras = [_camera(name, monitor, monitor.status()) for name, monitor in list(monitors.items())]
    return {
        "schema": "overview/1",
        "written_at": utc(time.time()),
        "version": installed_version(),
        "sign_out": sign_out,
        "cameras": cameras,
    }


def _camera(name: str, monitor: Monitor, status: RunStatus) -> dict[str, object]:
    source, result = status.source, status.result
    seen = {} if result is None else {"label": result.summary[0], "corruption": result.belief.type}
    return {
        "camera": name,
        "source": source.name,
        "state": "paused" if monitor.paused else source.state,
        "error": source.error,
        "fps": status.fps,
        "since_result_s": status.since_result_s,
        "results": status.totals.results,
        "dropped": source.dropped,
        "rejected": sum(status.rejected_by_reason.values()),
        "label": None,
        "corruption": None,
        **seen,
        "severity": None if result is None else round(result.belief.type_severity, 2),
        "mix": {} if result is None else {key: round(alpha, 2) for key, alpha in result.mix.items()},
    }
