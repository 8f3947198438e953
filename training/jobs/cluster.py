"""Workers on a Ray cluster: Ray places jobs, scales, and begins those of a node that died again, without end."""

import logging
import os
import pickle
import socket
import sys
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, NodeDiedError
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

from rws.errors import InputError, UsageError, first_line
from rws.training.jobs.graph import Outcome, Work
from rws.training.jobs.version import code_version, difference
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
        self._threads, self._most, self._why = threads, most, ""
        self._begun = not ray.is_initialized()
        try:
            if self._begun:
                _check_open(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray's errors share no base
            fault = f"no Ray cluster at {address} ({first_line(error)[:200]})"
            raise UsageError(f"{fault}; start one with `ray start`") from error
        # Nodes have the package installed. What they are sent is unpickled when their version is known.
        self._task = ray.remote(num_cpus=self._threads, max_retries=0, retry_exceptions=False)(_do_here)
        self._sent = pickle.dumps(work), self._threads, code_version(), sys.argv
        self._jobs: dict[Any, tuple[str, set[str]]] = {}
        self._stale: list[str] = []
        if not any(node["Resources"].get("CPU", 0) >= threads for node in _alive()):
            log.warning("no node has %s CPUs; jobs wait for one", threads)

    @property
    def slots(self) -> int:
        """Jobs in flight: some more than the cluster can run now, so that it scales."""
        cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]  # Ray types a part of itself
        return self._most or max(1, _WAITING * int(cpus // self._threads))

    def submit(self, job: str) -> None:
        """Give a job to the cluster, but not to a node that had another version of the code.

        Raises InputError if all nodes have.
        """
        task, nodes = self._task, _nodes()
        if self._stale:
            if not nodes - {*self._stale}:
                raise InputError(f"all nodes of the cluster have another version of the code: {self._why}")
            strategy = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*self._stale)})  # type: ignore[no-untyped-call]
            task = task.options(scheduling_strategy=strategy)
        self._jobs[task.remote(job, *self._sent)] = job, nodes

    def wait(self, seconds: float) -> list[Outcome]:
        """Return what has ended, after `seconds` at most."""
        ended, _ = ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ended]

    def _outcome(self, reference: Any) -> Outcome:
        job, nodes = self._jobs.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except Exception as error:  # Ray's errors share no base
            # The death of a node is no fault of its jobs.
            lost = isinstance(error, (NodeDiedError, LocalRayletDiedError)) or not nodes <= _nodes()
            cause = first_line(getattr(error, "cause", None) or error)[:300]
            return Outcome(job, "refused" if lost else "died", why=f"its process or node died: {cause}")
        if outcome.status == "refused" and outcome.node not in self._stale:
            self._stale.append(outcome.node)
            self._why = outcome.why
            log.warning("node %s %s; it gets no jobs", outcome.node[:8], outcome.why)
        return outcome

    def close(self) -> None:
        """Cancel what runs; Ray's other processes stay."""
        for reference in self._jobs:
            ray.cancel(reference)
        if self._jobs:
            ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=_PATIENCE)
        if self._begun:
            ray.shutdown()


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _nodes() -> set[str]:
    return {node["NodeID"] for node in _alive()}


def _check_open(address: str) -> None:
    """Raise an OSError if nothing listens at `[ray://]HOST:PORT`; Ray would try for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _PATIENCE).close()


def _do_here(job: str, work: bytes, threads: int, version: str, command: list[str]) -> Outcome:
    node = ray.get_runtime_context().get_node_id()
    if version != code_version():
        return Outcome(job, "refused", node=node, why=f"has another version: {difference(version)}")
    sys.argv[:] = command  # which results name
    return do_logged(pickle.loads(work), job, threads)
