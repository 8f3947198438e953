"""Against a real Ray cluster of several nodes on this machine, of one CPU each."""

import os
import threading
from collections import Counter

import pytest
import ray

from rws.errors import InputError, UsageError
from rws.training.jobs.graph import DEATHS, JobsFailedError
from support.job_graphs import drive, files_in, runs_of, sum_in, wait_until


@pytest.fixture
def nodes(ray_cluster, ray_address):
    yield ray_cluster
    ray.shutdown()


def test_one_two_and_three_nodes_make_the_same_files(tmp_path, nodes, add_node):
    drive(tmp_path / "here", 5)
    drive(tmp_path / "one", 5, on="ray")
    add_node()
    drive(tmp_path / "two", 5, on="ray")
    add_node()
    drive(tmp_path / "three", 5, on="ray")
    expected = files_in(tmp_path / "here")
    assert all(files_in(tmp_path / name) == expected for name in ("one", "two", "three"))


def test_a_job_that_always_fails_is_reported_and_the_others_go_on(tmp_path, nodes):
    with pytest.raises(JobsFailedError, match="job-1: ValueError: job-1 is broken"):
        drive(tmp_path, 4, harm="fails", on="ray")
    assert Counter(runs_of(tmp_path)) == {"job-0": 1, "job-1": 2, "job-2": 1, "job-3": 1}
    assert "ValueError: job-1 is broken" in (tmp_path / "logs" / "job-1.log").read_text()


def test_a_worker_that_is_killed_costs_only_what_it_had_begun(tmp_path, nodes):
    drive(tmp_path, 5, harm="dies once", on="ray")
    assert sum_in(tmp_path) == 10
    assert Counter(runs_of(tmp_path)) == Counter({f"job-{n}": 1 for n in range(5)} | {"job-1": 2})


def test_a_job_that_always_kills_its_process_is_reported(tmp_path, nodes):
    with pytest.raises(JobsFailedError, match="job-1: its process or node died"):
        drive(tmp_path, 3, harm="dies", on="ray")
    assert runs_of(tmp_path).count("job-1") == DEATHS


def test_if_all_nodes_have_another_version_that_is_said(tmp_path, nodes, monkeypatch):
    monkeypatch.setattr("rws.training.jobs.cluster.code_version", lambda: "rws-edge 9.9")
    with pytest.raises(InputError, match=r"all nodes of the cluster have another version of the code: .*rws-edge 9\.9"):
        drive(tmp_path, 2, on="ray")


def test_nodes_may_die_and_come(tmp_path, nodes, add_node):
    node = add_node()
    driver = threading.Thread(target=drive, args=(tmp_path, 16, 0.5), kwargs={"on": "ray"})
    driver.start()
    for finished in (3, 8):
        wait_until(lambda: len(runs_of(tmp_path)) >= finished)  # noqa: B023  # it is called here only
        nodes.remove_node(node, allow_graceful=False)
        node = add_node()
    driver.join(120)
    assert not driver.is_alive()
    assert sum_in(tmp_path) == 120
    again = Counter(runs_of(tmp_path)) - Counter({f"job-{n}": 1 for n in range(16)})
    assert again.total() <= 2


def test_a_node_with_another_version_of_the_code_is_refused(tmp_path, nodes, add_node, caplog):
    stale = tmp_path / "stale"
    stale.mkdir()
    (stale / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nold = m.version\n"
        "m.version = lambda name: '9.9' if name == 'rws-edge' else old(name)\n"
    )
    path = os.pathsep.join([str(stale), os.environ.get("PYTHONPATH", "")])
    add_node(env_vars={"PYTHONPATH": path})
    drive(tmp_path / "work", 6, 0.3, on="ray")
    assert sum_in(tmp_path / "work") == 15
    assert Counter(runs_of(tmp_path / "work")) == {f"job-{n}": 1 for n in range(6)}
    assert "rws-edge 9.9" in caplog.text
    assert "it gets no jobs" in caplog.text


def test_there_is_no_cluster(tmp_path, monkeypatch):
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"no Ray cluster at auto .*start one with `ray start`"):
        drive(tmp_path, 1, on="ray")
