import multiprocessing
import os
import signal
import time
from functools import partial

import pytest

from training.jobs import claim, run_jobs

NAMES = [f"job{number}" for number in range(6)]


def work(folder, name):
    """Leaves a line for each time that it was really done."""
    if not (folder / name).exists():
        time.sleep(0.05)
        (folder / name).write_text("done")
        with open(folder / "log", "a") as handle:
            handle.write(f"{name} {os.getpid()}\n")


def worker(folder):
    run_jobs({name: partial(work, folder, name) for name in NAMES}, folder)


def hold(folder, started):
    with claim(folder, "job0", wait=True):
        started.set()
        time.sleep(60)


def test_processes_share_the_jobs_and_all_are_done_when_any_of_them_returns(tmp_path):
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=worker, args=(tmp_path,)) for _ in range(2)]
    for process in others:
        process.start()
    worker(tmp_path)
    assert all((tmp_path / name).exists() for name in NAMES)
    for process in others:
        process.join()
    done = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(name for name, _ in done) == NAMES
    assert len({process for _, process in done}) > 1


def test_a_claim_is_refused_while_it_is_held_and_free_when_its_process_dies(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, started))
    holder.start()
    assert started.wait(10)
    with claim(tmp_path, "job0", wait=False) as held:
        assert not held
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with claim(tmp_path, "job0", wait=False) as held:
        assert held


def test_a_job_that_fails_says_so(tmp_path):
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_jobs({"a": fail}, tmp_path)
