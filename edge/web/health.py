"""The health of a run, for a supervisor that polls every few seconds."""

from dataclasses import dataclass

from rws.edge.monitoring.run_status import LOST, RECENT, RunStatus

MOST_FAILED = 2  # of the newest `RECENT` frames; with more, the run is degraded


@dataclass(frozen=True)
class Health:
    """The health of a run: `ok`, `impaired` (results come, but an output fails), `lost`, `ended`, `degraded`, `stale`.

    Then why, the newest result's age, and the source's state.
    """

    status: str
    reason: str
    since_result_s: float | None
    source: str

    @property
    def serves(self) -> bool:
        """Whether the run does its work; restarting it does not empty a full disk, and would cost the frames too."""
        return self.status in ("ok", "impaired")


def health(status: RunStatus, stale_after: float) -> Health:
    """Return the health of a run; `stale_after` is how many seconds it may go without a result, at its start too."""
    source, since = status.source, status.since_result_s
    silent = status.uptime_s if since is None else since
    word, reason = "ok", ""
    if silent >= stale_after and source.state in LOST:
        word, reason = "lost", f"{source.name} is lost" + (f": {source.error}" if source.error else "")
    elif silent >= stale_after and source.state == "ended":
        word, reason = "ended", f"no result for {silent:.0f} s"
    elif status.failed > MOST_FAILED:
        word, reason = "degraded", f"{status.failed} of the last {RECENT} frames have no result: {status.failure}"
    elif silent >= stale_after:
        word, reason = "stale", f"no result for {silent:.0f} s"
    elif failing := status.failing_sinks:
        word, reason = "impaired", "; ".join(f"{name}: {sink.error or sink.state}" for name, sink in failing.items())
    return Health(word, reason, since, source.state)
