from types import SimpleNamespace

import numpy as np
import pytest

from rws.edge.monitoring.watch import Watch, problems_meant
from rws.errors import UsageError
from rws.oracle.belief import Belief
from rws.oracle.temporal_filter import BeliefFilter
from rws.records import Frame

NAMES, LEVELS = ("fog", "my_hail"), (1.0, 3.0, 5.0)
FOG = Belief(NAMES, LEVELS, np.float32([0, 0, 1, 0, 0, 0, 0]))
IMAGE = np.zeros((8, 8, 3), np.uint8)


def camera(**changes) -> SimpleNamespace:
    about = {"sequential": True, "live": True, "rejected": 0, "gone": False}
    return SimpleNamespace(**about | changes)


def watching(source) -> Watch:
    return Watch(source, BeliefFilter(NAMES, LEVELS), 1.0, 5.0, False)


def test_a_problem_is_meant_by_its_words_and_by_its_corruption():
    assert problems_meant(["out of focus", "my_hail", "my hail", "fog", "bad"], NAMES) == {
        "out of focus",
        "my hail",
        "fog",
        "bad",
    }
    with pytest.raises(UsageError, match="unknown problem 'hail'"):
        problems_meant(["hail"], NAMES)


@pytest.mark.parametrize("live", [True, False])
def test_time_never_goes_back(live, capsys):
    """A camera that restarts starts its own clock from 0; ours goes on."""
    watch = watching(camera(live=live))
    for second in range(8):
        watch.add(Frame(second, IMAGE, 100.0 + second, "camera", media_time=float(second % 4)), lambda frame: FOG)
    assert watch.record()["now"]["at"] == (7 if live else 3)
    assert watch.problems == ({"fog"} if live else set())


def test_the_past_of_a_lost_camera_is_forgotten():
    source = camera()
    watch = watching(source)
    clear = Belief(NAMES, LEVELS, np.float32([0.6, 0, 0.4, 0, 0, 0, 0]))
    for second in range(20):
        watch.add(Frame(second, IMAGE, float(second), "camera"), lambda frame: FOG)
    watch.add(Frame(20, IMAGE, 20.0, "camera"), lambda frame: clear)
    assert watch.record()["now"]["problem"] == "fog"
    source.gone = True
    watch.idle()
    watch.add(Frame(21, IMAGE, 30.0, "camera"), lambda frame: clear)
    assert watch.record()["now"]["problem"] == ""
