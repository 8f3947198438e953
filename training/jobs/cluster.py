"""Workers on a Ray cluster: Ray places jobs, scales, and begins those of a node that died again, without end."""

import logging
import os
import socket
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

from rws.errors import UsageError, first_line
from rws.training.jobs.graph import Outcome, Work
from rws.training.jobs.version import code_version
from rws.training.jobs.workers import do_logged

log = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds
_WAITING = 2  # jobs in flight for each that the cluster can run now, so that it scales


class Cluster:
    """Runs jobs as Ray tasks of `threads` CPUs each; UsageError if the cluster cannot be reached.

    Args:
        address: `auto`, the cluster of this machine, `ray://HOST:PORT` or `HOST:PORT`.
        most: jobs in flight; None: by the CPUs of the cluster.
    """

    def __init__(self, work: Work, address: str, threads: int = 1, most: int | None = None) -> None:
        self._work, self._threads, self._most = work, threads, most
        self._begun = not ray.is_initialized()
        try:
            if self._begun:
                _check_open(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray's errors share no base
            fault = f"no Ray cluster at {address} ({first_line(error)[:200]})"
            raise UsageError(f"{fault}; start one with `ray start`") from error
        # Nodes have the package installed, so Ray need not send the code of the function.
        self._task = ray.remote(num_cpus=self._threads, max_retries=-1, retry_exceptions=False)(_do_here)
        self._jobs: dict[Any, str] = {}
        self._stale: list[str] = []

    @property
    def slots(self) -> int:
        """Jobs in flight: some more than the cluster can run now, so that it scales."""
        cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]  # Ray types a part of itself
        return self._most or max(1, _WAITING * int(cpus // self._threads))

    def submit(self, job: str) -> None:
        """Give a job to the cluster, but not to a node that had another version of the code."""
        task = self._task
        if self._stale:
            strategy = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*self._stale)})  # type: ignore[no-untyped-call]
            task = task.options(scheduling_strategy=strategy)
        self._jobs[task.remote(self._work, job, self._threads, code_version())] = job

    def wait(self, seconds: float) -> list[Outcome]:
        """Return what has ended, after `seconds` at most."""
        ended, _ = ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        outcomes = []
        for reference in ended:
            job = self._jobs.pop(reference)
            try:
                outcome: Outcome = ray.get(reference)
            except Exception as error:
                outcome = Outcome(job, "died", why=first_line(error)[:300])
            if outcome.status == "refused" and outcome.node not in self._stale:
                self._stale.append(outcome.node)
                log.warning("node %s %s; it gets no jobs", outcome.node[:8], outcome.why)
            outcomes.append(outcome)
        return outcomes

    def close(self) -> None:
        """Cancel what runs; Ray's own processes stay."""
        for reference in self._jobs:
            ray.cancel(reference, force=True)
        if self._begun:
            ray.shutdown()


def _check_open(address: str) -> None:
    """Raise an OSError if nothing listens at `[ray://]HOST:PORT`; Ray would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _PATIENCE).close()


def _do_here(work: Work, job: str, threads: int, version: str) -> Outcome:
    node = ray.get_runtime_context().get_node_id()
    if (found := code_version()) != version:
        return Outcome(job, "refused", node=node, why=f"has version {found} of rws, the driver {version}")
    return do_logged(work, job, threads)
