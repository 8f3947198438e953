import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress

import pytest

from rws.errors import InputError, MissingExtraError, UsageError
from rws.terminal import session, set_quiet, set_verbose
from rws.training.jobs.driver import Where, as_member
from rws.training.jobs.graph import DEATHS, JobsFailedError
from rws.training.jobs.stopping import TERMINATED
from rws.training.jobs.version import same_version
from support.job_graphs import drive, files_in, runs_of, sum_in, wait_until


def start(folder, *arguments):
    command = [sys.executable, "-m", "support.job_graphs", folder, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), start_new_session=True, **pipes)


def test_every_place_makes_the_same_files(tmp_path):
    drive(tmp_path / "here", 5)
    drive(tmp_path / "processes", 5, workers=2)
    for member in (2, 1):
        with as_member(member, 2):
            if member == 1:
                drive(tmp_path / "array", 5)
            else:
                with pytest.raises(SystemExit) as ended:
                    drive(tmp_path / "array", 5)
                assert ended.value.code == 0
    expected = files_in(tmp_path / "here")
    assert len(expected) == 12
    assert files_in(tmp_path / "processes") == files_in(tmp_path / "array") == expected


def test_what_a_job_prints_is_in_its_log(tmp_path, capfd):
    drive(tmp_path, 2, workers=2)
    assert (tmp_path / "logs" / "job-1.log").read_text() == "making job-1 False False\n"
    assert "making" not in capfd.readouterr().out


@pytest.mark.parametrize(("option", "expected"), [(set_quiet, "True False"), (set_verbose, "False True")])
def test_workers_are_as_quiet_or_verbose_as_the_command(tmp_path, option, expected):
    with session():
        option(True)
        drive(tmp_path, 2, workers=2)
    assert expected in (tmp_path / "logs" / "job-1.log").read_text()


def test_progress_says_what_is_done_runs_and_is_left(tmp_path, capsys):
    drive(tmp_path, 2, workers=2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("sum ")
    assert "3 of 3 done, 0 running, 0 failed" in last
    assert "MB" in last


def test_a_second_run_begins_nothing(tmp_path):
    drive(tmp_path, 4)
    before = runs_of(tmp_path)
    drive(tmp_path, 4, workers=2)
    assert runs_of(tmp_path) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_always_fails_is_reported_and_the_others_go_on(tmp_path, workers):
    with pytest.raises(JobsFailedError, match=r"1 of 5 jobs failed, and 1 .*job-1: ValueError: job-1 is broken"):
        drive(tmp_path, 4, harm="fails", workers=workers)
    assert sorted(path.name for path in tmp_path.glob("job-*.json")) == ["job-0.json", "job-2.json", "job-3.json"]
    assert Counter(runs_of(tmp_path)) == {"job-0": 1, "job-1": 2, "job-2": 1, "job-3": 1}
    if workers > 1:
        assert "ValueError: job-1 is broken" in (tmp_path / "logs" / "job-1.log").read_text()
    drive(tmp_path, 4)  # it is mended
    assert sum_in(tmp_path) == 6


def test_a_killed_worker_costs_only_what_it_had_begun(tmp_path):
    drive(tmp_path, 6, harm="dies once", workers=2)
    assert sum_in(tmp_path) == 15
    assert Counter(runs_of(tmp_path)) == Counter({f"job-{n}": 1 for n in range(6)} | {"job-1": 2})


def test_a_job_that_always_kills_its_process_is_reported(tmp_path):
    with pytest.raises(JobsFailedError, match="job-1: its process ended"):
        drive(tmp_path, 3, harm="dies", workers=2)
    assert runs_of(tmp_path).count("job-1") == DEATHS


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_killed_driver_only_what_was_in_flight_is_begun_again(tmp_path, workers):
    driver = start(tmp_path, "jobs", 6, 0.5, workers)
    wait_until(lambda: (tmp_path / "job-1.json").exists())
    driver.kill()
    driver.communicate()
    done = {path.stem for path in tmp_path.glob("job-*.json")}
    begun = Counter(runs_of(tmp_path))
    drive(tmp_path, 6, workers=2)
    assert sum_in(tmp_path) == 15
    again = Counter(runs_of(tmp_path)) - begun
    assert not done & again.keys()
    assert sum((Counter(runs_of(tmp_path)) - Counter({f"job-{n}": 1 for n in range(6)})).values()) <= workers


def test_the_workers_of_a_killed_driver_end(tmp_path):
    driver = start(tmp_path, "jobs", 6, 0.5, 2)
    wait_until(lambda: len(runs_of(tmp_path)) >= 2)
    driver.kill()
    driver.communicate()
    workers = {int(line.split()[1]) for line in (tmp_path / "runs").read_text().splitlines()}
    wait_until(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers), 20)


@pytest.mark.parametrize("workers", [1, 2])
def test_two_drivers_at_once_make_each_file_once(tmp_path, workers):
    drivers = [start(tmp_path, "jobs", 8, 0.2, workers) for _ in range(2)]
    said = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert Counter(runs_of(tmp_path)) == {f"job-{n}": 1 for n in range(8)}
    assert sum_in(tmp_path) == 28


def test_a_full_disk_loses_nothing(small_disk):
    drive(small_disk, 2)
    (small_disk / "ballast").write_bytes(b"x" * 4096)
    with suppress(OSError), open(small_disk / "more", "wb", buffering=0) as rest:
        while True:
            rest.write(b"x" * 4096)
    (small_disk / "ballast").write_bytes(b"")  # room for a line of the log, not for a file
    kept = files_in(small_disk)
    with pytest.raises(JobsFailedError, match="No space left on device"):
        drive(small_disk, 5, workers=2)
    assert kept.items() <= files_in(small_disk).items()
    (small_disk / "more").unlink()
    drive(small_disk, 5, workers=2)
    assert sum_in(small_disk) == 10


def test_sigterm_ends_a_driver_and_its_workers_without_a_trace_of_a_write(tmp_path):
    driver = start(tmp_path, "jobs", 6, 0.5, 2)
    wait_until(lambda: len(runs_of(tmp_path)) >= 2)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=30)
    assert driver.returncode == TERMINATED
    assert not list(tmp_path.glob(".*.tmp"))
    drive(tmp_path, 6)
    assert sum_in(tmp_path) == 15


@pytest.mark.parametrize(("workers", "sent"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_write_that_is_under_way_is_finished(tmp_path, workers, sent):
    driver = start(tmp_path, "write", workers)
    wait_until(lambda: (tmp_path / "writing").exists())
    if sent == signal.SIGINT:  # as a terminal sends it, to all
        os.killpg(os.getpgid(driver.pid), sent)
    else:
        driver.send_signal(sent)
    driver.communicate(timeout=60)
    assert driver.returncode == (TERMINATED if sent == signal.SIGTERM else -signal.SIGINT)
    assert json.loads((tmp_path / "slow.json").read_text()) == 1


def test_members_of_an_array_wait_for_what_they_need(tmp_path):
    members = [start(tmp_path, "neck", 6, 1.0, number, 3) for number in (1, 2, 3)]
    said = [member.communicate(timeout=120)[0] for member in members]
    assert [member.returncode for member in members] == [0, 0, 0], said
    runs = [line.split() for line in (tmp_path / "runs").read_text().splitlines()]
    assert Counter(name for name, _ in runs) == Counter({f"job-{n}": 1 for n in range(6)} | {"neck-0": 1})
    assert len({process for name, process in runs if name != "neck-0"}) > 1
    assert sum_in(tmp_path) == 15


class TestVersions:
    def test_another_version_is_refused_while_it_is_at_work(self, tmp_path, monkeypatch):
        with same_version(tmp_path), same_version(tmp_path):
            monkeypatch.setattr("rws.training.jobs.version.code_version", lambda: "9.9 abc")
            with pytest.raises(InputError, match=r"in use with .*, 9\.9 abc here; install the same"):
                drive(tmp_path, 2)
        assert runs_of(tmp_path) == []
        drive(tmp_path, 2)  # nobody is at work any more
        assert sum_in(tmp_path) == 1


class TestOptions:
    @pytest.mark.parametrize("on", ["there", "ray:/x", "http://x"])
    def test_unknown_places(self, on):
        with pytest.raises(UsageError, match="expected here, ray or ray://"):
            Where(on)

    @pytest.mark.parametrize(("number", "count"), [(0, 2), (3, 2), (1, 0)])
    def test_members_that_cannot_be(self, number, count):
        with pytest.raises(UsageError, match="expected 1 to"), as_member(number, count):
            pass

    def test_threads_are_shared(self, monkeypatch):
        monkeypatch.setattr("rws.training.jobs.driver.cores", lambda: 8)
        assert Where(workers=2).threads_each == 4
        assert Where().threads_each is None
        assert Where("ray", workers=2).threads_each == 1
        assert Where(workers=16).threads_each == 1

    def test_without_ray_the_extra_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "rws.training.jobs.cluster", raising=False)
        with pytest.raises(MissingExtraError, match=r"'ray', which is not installed .*rws-edge\[cluster\]"):
            drive(tmp_path, 1, on="ray")

    def test_explain_ends_without_doing_anything(self, tmp_path, capsys):
        drive(tmp_path, 1)
        capsys.readouterr()
        with pytest.raises(SystemExit):
            drive(tmp_path, 2, explain=True)
        lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        assert lines == [["job-0", "done"], ["job-1", "job-1.json does not exist"], ["sum", "needs job-1"]]
        assert runs_of(tmp_path) == ["job-0"]
