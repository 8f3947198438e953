import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.errors import InputError
from rws.training.jobs.graph import DEATHS, Job, JobsFailedError, Outcome, Run, explain, needed, run
from rws.training.jobs.store import JSON, NotMadeError, Store, differences, missing


class Memory:
    """Jobs whose files are names in a set, and workers that end them as given."""

    def __init__(self, after, ends=(), slots=2):
        self.made, self.looked, self.begun = set(), Counter(), []
        self.graph = {name: Job(lambda name=name: self.look(name), tuple(needs)) for name, needs in after.items()}
        self.ends = {name: list(statuses) for name, statuses in dict(ends).items()}
        self.slots, self.given, self.closed = slots, [], False

    def look(self, name):
        self.looked[name] += 1
        if name not in self.made:
            raise NotMadeError(f"{name} does not exist")

    def submit(self, name):
        assert set(self.graph[name].after) <= self.made
        self.begun.append(name)
        self.given.append(name)
        assert len(self.given) <= self.slots

    def wait(self, seconds):
        name = self.given.pop(0)
        status, *rest = self.ends.get(name) or ["done"]
        self.ends[name] = rest
        if status == "done":
            self.made.add(name)
        return [Outcome(name, status, seconds=1.0, why="broken")]

    def close(self):
        self.closed = True


DIAMOND = {"init": (), "left": ("init",), "right": ("init",), "end": ("left", "right")}


def test_each_job_runs_once_after_what_it_needs():
    memory = Memory(DIAMOND)
    assert run(memory.graph, memory)
    assert memory.begun == ["init", "left", "right", "end"]
    assert memory.closed


def test_what_is_done_is_not_run_again():
    memory = Memory(DIAMOND)
    memory.made |= {"init", "left"}
    run(memory.graph, memory)
    assert memory.begun == ["right", "end"]


def test_a_job_that_fails_once_is_tried_again():
    memory = Memory(DIAMOND, {"left": ["failed"]})
    assert run(memory.graph, memory)
    assert memory.begun.count("left") == 2


def test_a_job_that_fails_twice_is_reported_and_the_others_go_on():
    memory = Memory(DIAMOND | {"other": ()}, {"left": ["failed"] * 2})
    with pytest.raises(JobsFailedError, match=r"1 of 5 jobs failed, and 1 that need them did not run \(left: broken\)"):
        run(memory.graph, memory)
    assert memory.made == {"init", "right", "other"}
    assert memory.closed


def test_a_process_that_dies_is_begun_again_a_few_times():
    memory = Memory(DIAMOND, {"left": ["died"] * (DEATHS - 1)})
    assert run(memory.graph, memory)
    memory = Memory(DIAMOND, {"left": ["died"] * DEATHS})
    with pytest.raises(JobsFailedError, match="left: broken"):
        run(memory.graph, memory)


def test_a_refused_job_goes_elsewhere_however_often():
    memory = Memory(DIAMOND, {"init": ["refused"] * 20})
    assert run(memory.graph, memory)


def test_a_job_that_another_process_holds_is_waited_for():
    times, memory = iter(range(0, 1000, 10)), Memory(DIAMOND)
    state = Run(memory.graph, clock=lambda: next(times))
    assert list(state.begin(2)) == ["init"]
    state.end(Outcome("init", "held"))
    assert state.is_open
    assert not state.only_held  # there is more to do when it is done
    memory.made.add("init")  # by the other
    assert list(state.begin(2)) == ["left", "right"]


def test_without_waiting_for_others_the_run_ends():
    memory = Memory({"a": (), "b": ()}, {"a": ["held"] * 5})
    assert not run(memory.graph, memory, wait_for_others=False)
    assert memory.made == {"b"}


def test_a_job_whose_files_are_not_there_afterwards_has_failed():
    memory = Memory({"a": ()})
    memory.made = type("Forgetful", (set,), {"add": lambda self, name: None})()
    times = iter(range(0, 10_000, 60))
    state = Run(memory.graph, clock=lambda: next(times))
    while state.is_open:
        for name in state.begin(1):
            memory.submit(name)
        if memory.given:
            state.end(memory.wait(0)[0])
    assert 2 < len(memory.begun) < 10  # a file may be seen late on a file system of a network
    with pytest.raises(JobsFailedError, match="ran on another node, but a does not exist"):
        state.check()


def test_a_file_that_cannot_be_read_makes_its_job_fail_and_not_the_others():
    memory = Memory({"a": (), "b": (), "c": ("a",)})

    def refuse():
        raise InputError("a.json is damaged")

    graph = memory.graph | {"a": Job(refuse)}
    with pytest.raises(InputError, match=r"a\.json is damaged"):
        run(graph, memory)
    assert memory.made == {"b"}


def test_wrong_input_is_not_tried_twice():
    state = Run({"a": Job(lambda: missing_file())})
    assert list(state.begin(1)) == ["a"]
    state.end(Outcome("a", "failed", why="wrong folder", error=InputError("wrong folder")))
    assert not state.is_open


def missing_file():
    raise NotMadeError("a does not exist")


def test_the_error_of_one_job_in_this_process_is_raised_itself():
    state = Run({"a": Job(lambda: 1)})
    state.failed["a"] = Outcome("a", "failed", why="wrong folder", error=InputError("wrong folder"))
    with pytest.raises(InputError, match="wrong folder"):
        state.check()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_graph_is_done_in_order_whatever_happens(data):
    count = data.draw(st.integers(1, 25))
    after = {
        f"j-{n}": [f"j-{m}" for m in data.draw(st.sets(st.integers(0, n - 1), max_size=3) if n else st.just(set()))]
        for n in range(count)
    }
    harm = st.sampled_from([["failed"], ["died"] * 4, ["refused"] * 3, ["failed", "died"], []])
    memory = Memory(after, {name: data.draw(harm) for name in after}, slots=data.draw(st.integers(1, 4)))
    order = data.draw(st.permutations(list(after)))
    graph = needed(memory.graph, order)
    assert run(graph, memory, first=data.draw(st.integers(0, 30)), quiet=True)
    assert memory.made == set(after)


def test_the_work_of_the_loop_grows_linearly():
    after = {"init": ()} | {f"job-{n}": ("init",) for n in range(10_000)} | {"end": ("init",)}
    memory = Memory(after, slots=8)
    assert run(memory.graph, memory, quiet=True)
    assert memory.looked.total() == 2 * len(after)
    again = Memory(after)
    again.made = memory.made
    assert run(again.graph, again, quiet=True)
    assert again.looked.total() == len(after)
    assert not again.begun


def test_only_what_is_needed():
    memory = Memory(DIAMOND)
    assert list(needed(memory.graph, ["left"])) == ["init", "left"]
    assert list(needed(memory.graph, ["end", "init"])) == ["init", "left", "right", "end"]


class TestExplaining:
    def test_why_a_job_is_to_be_done(self):
        memory = Memory(DIAMOND)
        memory.made.add("init")
        assert dict(explain(memory.graph)) == {
            "init": "",
            "left": "left does not exist",
            "right": "right does not exist",
            "end": "needs left, right",
        }
        assert not memory.begun

    @pytest.mark.parametrize("other", ["remake", "keep", "refuse"])
    def test_what_was_made_with_other_inputs(self, tmp_path, other):
        store = Store(tmp_path, other)

        def get(epochs):
            store.get("a.json", {"recipe": {"epochs": epochs, "rate": 0.1}, "images": "abc"}, lambda: 1, JSON)

        assert "a" in missing(lambda: get(4))
        assert missing(lambda: get(4)).endswith("does not exist")
        get(4)
        assert not missing(lambda: get(4))
        assert missing(lambda: get(6)) == "a.json was made with other inputs: recipe.epochs: 4 → 6"

    def test_what_is_damaged(self, tmp_path):
        Store(tmp_path).get("a.json", 1, lambda: 1, JSON)
        (tmp_path / "a.json").write_text("2")
        assert missing(lambda: Store(tmp_path).get("a.json", 1, lambda: 1, JSON)) == "a.json is damaged"

    def test_a_look_makes_nothing(self, tmp_path):
        assert missing(lambda: Store(tmp_path / "no").get("a.json", 1, lambda: 1, JSON))
        assert os.listdir(tmp_path) == []

    def test_the_first_three_places(self):
        assert differences({"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 4}], "d": 3}) == (
            "a[1].b: 2 → 4; c: 3 → null; d: null → 3"
        )
        assert differences([1], [1]) == ""
