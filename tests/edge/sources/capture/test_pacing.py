import numpy as np
import pytest

from rws.edge.sources.capture.decoding.base import DecodedFrame
from rws.edge.sources.capture.pacing import SPARE, Pacer


def frame(media_time=None, captured_at=0.0):
    return DecodedFrame(np.zeros((2, 2, 3), np.uint8), captured_at, media_time=media_time)


def play(pacer, frames, decoding=0.0, now=100.0):
    """Return when each frame is shown; `decoding` seconds pass for each."""
    shown = []
    for one in frames:
        now = max(now, one.captured_at) + decoding
        now += pacer.wait(one, now)
        shown.append(now)
    return np.array(shown)


def test_a_recording_plays_at_its_own_pace_pauses_included():
    times = [0.0, 0.04, 0.08, 6.08, 6.12]
    assert play(Pacer(25, bursts=False), map(frame, times), decoding=0.01) == pytest.approx(100.01 + np.array(times))


def test_without_times_the_rate_decides_and_without_a_rate_nothing():
    assert play(Pacer(50, bursts=False), [frame()] * 4) == pytest.approx([100, 100.02, 100.04, 100.06])
    assert play(Pacer(None, bursts=False), [frame()] * 4) == pytest.approx([100] * 4)


def test_a_recording_makes_up_for_a_late_frame():
    pacer = Pacer(25, bursts=False)
    play(pacer, [frame(0.0)])
    assert pacer.wait(frame(0.1), 103.0) == 0
    assert pacer.wait(frame(2.9), 103.0) == 0
    assert pacer.wait(frame(3.5), 103.0) == pytest.approx(0.5)


def bursts(seconds, late=lambda n: 0.0):
    """Segments of two seconds, 25 frames per second, each of which arrives at once when it is complete."""
    return [frame(2 * n + i / 25, 100 + 2 * n + late(n)) for n in range(seconds // 2) for i in range(50)]


def test_bursts_are_spread_evenly():
    shown = play(Pacer(25, bursts=True), bursts(20))
    assert np.diff(shown) == pytest.approx(0.04)


def test_a_late_burst_delays_the_next_ones_once():
    shown = play(Pacer(25, bursts=True), bursts(40, late=lambda n: 0.7 if n % 3 == 1 else 0.0))
    gaps = np.diff(shown)
    assert gaps.max() == pytest.approx(0.74)
    assert (gaps > 0.05).sum() == 1


def test_after_a_long_silence_it_catches_up():
    frames = bursts(60, late=lambda n: max(0.0, 20 - 2 * n) if n >= 3 else 0.0)
    shown = play(Pacer(25, bursts=True), frames)
    waited = shown - [one.captured_at for one in frames]
    assert waited.max() > 10
    assert waited[-50:].min() <= SPARE + 0.01
    assert (np.diff(shown) >= 0).all()


def test_it_starts_again_after_frames_were_skipped():
    pacer = Pacer(25, bursts=True)
    play(pacer, bursts(4))
    pacer.restart()
    assert pacer.wait(frame(50.0, 105.0), 105.0) == 0
    assert pacer.wait(frame(50.04, 105.0), 105.0) == pytest.approx(0.04)
