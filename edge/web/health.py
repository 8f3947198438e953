"""The health of a run, for a supervisor that polls every few seconds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

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
    cameras: Mapping[str, "Health"] = field(default_factory=dict)  # each, if a run has several

    @property
    def serves(self) -> bool:
        """Whether the run does its work; restarting it does not empty a full disk, and would cost the frames too."""
        return self.status in ("ok", "impaired")

    def to_dict(self) -> dict[str, object]:
        """Return plain types; `cameras` only if there are several."""
        record = asdict(self)
        if not self.cameras:
            del record["cameras"]
        return record


PAUSED = Health("ok", "paused by hand", None, "running")


def health_of_all(statuses: Mapping[str, RunStatus], stale_after: float) -> Health:
    """Return the health of the only camera, or of several: `impaired` as long as one of them serves."""
    each = {name: health(status, stale_after) for name, status in statuses.items()}
    if not each:
        return Health("ended", "there is no camera", None, "ended")
    if len(each) == 1:
        return next(iter(each.values()))
    bad = {name: found for name, found in each.items() if found.status != "ok"}
    served = [found.since_result_s for found in each.values() if found.since_result_s is not None]
    reason = "; ".join(f"{name}: {found.reason}" for name, found in bad.items())
    word = "impaired" if any(found.serves for found in each.values()) else next(iter(bad.values())).status
    state = "running" if any(found.source == "running" for found in each.values()) else "lost"
    return Health(word if bad else "ok", reason, min(served, default=None), state, each)


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
