"""Whether a run does its work, for a supervisor that asks every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def health(report: Mapping[str, Any], stale_after: float) -> tuple[bool, dict[str, Any]]:
    """Judge a snapshot of a `Monitor`.

    Args:
        report: what `Monitor.snapshot` gave.
        stale_after: seconds that a run may go without a result, at its start as well.

    Returns:
        Whether all is well, and an answer in plain types: `status` (`ok`, `lost`, `ended` or `stale`), `reason` in
        words ("" where all is well), `since_result_s` (None before the first), and the source's `state`.
    """
    source, since = report["source"], report["since_result_s"]
    silent = report["uptime_s"] if since is None else since
    well = silent < stale_after
    status, reason = "ok", ""
    if not well and source["state"] in ("reconnecting", "lost"):
        status = "lost"
        reason = f"{source['name']} is lost" + (f": {source['error']}" if source["error"] else "")
    elif not well:
        status = "ended" if source["state"] == "ended" else "stale"
        reason = f"no result for {silent:.0f} s"
    return well, {"status": status, "reason": reason, "since_result_s": since, "source": source["state"]}
