import json
from itertools import product

import numpy as np
import pytest
import torch

from rws.errors import InputError
from rws.training.jobs.progress import JobLines, TimeLeft, job_log, left_in_words, read_log


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def adoption(seed, quick):
    """Return the estimate and the truth, in minutes, after each record of a simulated adoption.

    Rates differ by corruption and from record to record, and the probes are wrong by a fifth.
    """
    rng, clock = np.random.default_rng(seed), Clock()
    left = TimeLeft(clock)
    steps, records = (50 if quick else 450), 10
    rates = {"frame": 0.01, "step": 0.4, "answer": 0.005, "oracle step": 0.3}
    jobs = [("all", "frame", 600, 1), ("all", "step", steps * 2.7, records)]
    corruptions = [f"c{number}" for number in range(19)]
    jobs += [job for name in corruptions for job in ((name, "frame", 600, 1), (name, "step", steps, records))]
    jobs += [("gain", "answer", 40_000, 20), ("oracle", "frame", 2000, 10), ("oracle", "oracle step", 150, 2)]

    def probe(kind, units, slower):
        def run():
            clock.seconds += units * rates[kind] * slower

        return run, units

    for job, kind, units, _ in jobs:
        cold = {"answer": (25, 1.25), "oracle step": (1, 0.8)}.get(kind)
        left.plan(job, kind, units, *(probe(kind, *cold) if cold else ()))
    found = []
    for job, kind, units, parts in jobs:
        left.begin()
        slower = rng.uniform(0.2, 1.8) if kind == "frame" and job != "all" else 1
        for part in range(1, parts + 1):
            clock.seconds += units / parts * rates[kind] * slower * rng.uniform(0.7, 1.3)
            left.did(job, kind, units / parts, units - units * part / parts)
            found.append((left.minutes(), clock.seconds / 60))
    end = clock.seconds / 60
    return [(estimate, end - now) for estimate, now in found]


@pytest.mark.parametrize(("seed", "quick"), product(range(5), (False, True)))
def test_an_estimate_is_near_the_truth_from_the_first_to_the_last(seed, quick):
    found = [(estimate, truth) for estimate, truth in adoption(seed, quick) if estimate is not None]
    assert len(found) > 200
    start = found[0][1]
    for estimate, truth in found:
        assert abs(estimate - truth) <= max(0.35 * truth, 0.05 * start)


@pytest.mark.parametrize("seed", range(5))
def test_an_estimate_never_falls_to_a_third_and_rises_again(seed):
    estimates = [estimate for estimate, _ in adoption(seed, True) if estimate is not None]
    lowest = np.minimum.accumulate(estimates)
    assert max(np.array(estimates) / np.maximum(lowest, 0.1 * estimates[0])) < 1.5


def test_nothing_is_estimated_before_all_rates_are_known():
    clock = Clock()
    left = TimeLeft(clock)
    assert left.minutes() is None
    left.plan("first", "step", 60)
    left.plan("second", "answer", 10)
    clock.seconds = 30
    left.did("first", "step", 30, 30)
    assert left.minutes() is None  # nobody knows how long an answer takes
    left.finish("second")
    assert left.minutes() == 0.5
    left.finish("first")
    assert left.minutes() is None


def test_the_time_between_jobs_belongs_to_no_unit():
    clock = Clock()
    left = TimeLeft(clock)
    left.plan("job", "step", 120)
    clock.seconds = 100
    left.begin()
    clock.seconds = 160
    left.did("job", "step", 60, 60)
    assert left.minutes() == 1


def test_a_short_probe_is_timed_warm_and_leaves_the_draws_of_a_training_alone():
    clock, runs = Clock(), []

    def run():
        torch.manual_seed(1)
        runs.append(clock.seconds)
        clock.seconds += 4 if len(runs) == 1 else 1

    left = TimeLeft(clock)
    left.plan("job", "step", 120, run, 2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert left.minutes() == 1
    assert torch.equal(torch.rand(3), expected)
    assert len(runs) == 2
    assert left.minutes() == 1
    assert len(runs) == 2


def test_the_log_counts_the_units_of_a_record_and_passes_it_on(tmp_path):
    seen, left = [], TimeLeft()
    left.plan("train", "step", 4)
    report = job_log(tmp_path, "train", seen.append, left, {"steps": "step"})
    report({"epoch": 1, "steps": 3, "steps_left": 1})
    report({"done": True})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["schema"] for line in lines] == ["job-log/1"] * 2
    assert [{key: line[key] for key in record} for line, record in zip(lines, seen, strict=True)] == seen
    assert [record["job"] for record in seen] == ["train", "train"]
    assert seen[0]["minutes_left"] >= 0
    assert "minutes_left" not in seen[1]


def test_a_job_takes_a_line_at_its_end_and_one_per_minute(capsys):
    clock = Clock()
    lines = JobLines(every=60, clock=clock)

    def report(seconds, **record):
        clock.seconds = seconds
        lines({"job": "fit", "seconds": float(seconds), **record})
        return capsys.readouterr().out.split("  ")[-1].strip()

    assert report(1, steps=3) == ""
    assert report(2, steps=3, minutes_left=9.6) == "about 10 min left"  # the first estimate
    assert report(30, steps=3, minutes_left=9.0) == ""
    assert report(63, steps=3, minutes_left=8.4) == "about 8 min left"
    assert report(64, done=True, accuracy=9, minutes_left=0.2) == "accuracy 9"
    assert report(65, steps=3, minutes_left=0.2) == ""


def test_time_is_said_in_words():
    minutes = (None, 0.4, 1.2, 99.4, 150)
    words = ["", "under a minute left", "about 1 min left", "about 99 min left", "about 2.5 h left"]
    assert [left_in_words(each) for each in minutes] == words


def test_the_half_lines_of_killed_processes_are_left_out(tmp_path):
    log = tmp_path / "log.jsonl"
    job_log(tmp_path, "a", None)({"done": True})
    whole = log.read_text()
    others = '{"job": "b", "sec\n\n[1]\n{"job": "c"}\n\x00\x00\n' + "[" * 100_000 + '\n{"job": "d", "seconds": NaN}\n'
    log.write_text(others + whole + whole[:-3])
    assert [record["job"] for record in read_log(log)] == ["a"]
    log.unlink()
    log.mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl: cannot be read"):
        read_log(log)


def test_on_a_terminal_a_bar_shows_how_much_is_done(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    clock = Clock()
    with JobLines(clock=clock) as lines:
        clock.seconds = 60
        lines({"job": "signature-fog", "seconds": 60.0, "minutes_left": 3.0})
    shown = capsys.readouterr().out
    assert "signature-fog" in shown
    assert "25%" in shown
    assert "about 3 min left" in shown
    monkeypatch.delenv("FORCE_COLOR")
    with JobLines(clock=clock) as lines:
        lines({"job": "signature-fog", "seconds": 60.0})
    assert capsys.readouterr().out == ""
