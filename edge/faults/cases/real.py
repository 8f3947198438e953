"""Faults with real capture processes, real files and real servers on loopback."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.faults.frames import encode_h264, encode_jpeg, flip_bytes, scene, stamped
from rws.edge.faults.harness import Drill, NotHereError, Seen, fault
from rws.edge.faults.servers import Camera, MjpegServer, RtspServer
from rws.edge.pipeline import Result
from rws.edge.sources.base import Source
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.open import open_source
from rws.records import Frame

SCENES = 8
RETURN_SECONDS = 2.0  # from the return of a camera to its first result
_RETURNS = "A result within 2 s of its return; meanwhile no frame is invented."
Fault = Callable[[int, bytes], bytes]  # what becomes of the n-th JPEG of a camera


def _camera(fault: Fault = lambda number, jpeg: jpeg) -> Camera:
    scenes = [scene(480, 640, seed) for seed in range(SCENES)]
    return lambda number: fault(number, encode_jpeg(stamped(scenes[number % SCENES], number)))


def _play_mjpeg(drill: Drill, fault: Fault, last: int = 60, stall: float = 5.0) -> tuple[list[Seen], Source]:
    with MjpegServer(_camera(fault)) as server:
        source = open_source(server.url, stall=stall)
        return drill.play(source, lambda seen: bool(seen) and (seen[-1].stamp or 0) >= last), source


@fault("truncated JPEG", "Truncated frames are kept from the oracle and counted as damaged.")
def _truncated(drill: Drill) -> None:
    seen, source = _play_mjpeg(drill, lambda n, jpeg: jpeg[: len(jpeg) // 2] if 30 <= n < 45 else jpeg)
    wrong = [one.stamp for one in seen if one.stamp is None or 30 <= one.stamp < 45]
    rejected = source.rejections["damaged"] + source.rejections["undecodable"]
    drill.say(f"{rejected} of 15 rejected, {len(wrong)} passed")
    drill.check(not wrong, "none of the 15 has a result")
    drill.check(rejected == 15, "all 15 are counted")


@fault("black frames", "They are kept from the oracle and counted; the camera does not count as lost.")
def _black(drill: Drill) -> None:
    dark = encode_jpeg(np.zeros((480, 640, 3), np.uint8))
    seen, source = _play_mjpeg(drill, lambda n, jpeg: dark if 30 <= n < 45 else jpeg)
    drill.say(f"{source.rejections['black']} of 15 rejected, reconnects {source.reconnects}")
    drill.check(source.rejections["black"] == 15, "all 15 are counted as black")
    drill.check(source.reconnects == 0, "the source is not reopened")
    drill.check(all(one.stamp is not None for one in seen), "only frames of the camera have results")


@fault(
    "frozen frames",
    "Identical frames are accepted for 2 s, then rejected; the camera is reopened; then the run continues.",
    slow=True,
)
def _frozen(drill: Drill) -> None:
    held = encode_jpeg(stamped(scene(480, 640, 30 % SCENES), 30))
    seen, source = _play_mjpeg(drill, lambda n, jpeg: held if 30 <= n < 210 else jpeg, last=240, stall=2.0)
    repeated, frozen = sum(one.stamp == 30 for one in seen), source.rejections["frozen"]
    drill.say(f"{repeated} identical frames passed, {frozen} rejected, reconnects {source.reconnects}")
    drill.check(frozen >= 30, "frozen frames are rejected")
    drill.check(repeated <= 75, "identical frames pass for little more than 2 s")
    drill.check(source.reconnects >= 1, "it is reopened")


@fault("the resolution changes", "Each frame of each size has a result.", slow=True)
def _resolution(drill: Drill) -> None:
    sizes = {30: (720, 1280), 45: (480, 848), 60: (1080, 1920)}
    images = {start: scene(*size, seed=start) for start, size in sizes.items()}

    def resize(number: int, jpeg: bytes) -> bytes:
        start = max((start for start in sizes if start <= number), default=None)
        return jpeg if start is None else encode_jpeg(stamped(images[start], number))

    seen, source = _play_mjpeg(drill, resize, last=75)
    stamps = [one.stamp for one in seen]
    drill.say(f"{len(seen)} results over 4 sizes, {source.dropped} dropped, {source.rejected} rejected")
    drill.check(None not in stamps, "each frame is whole")
    drill.check(source.rejected == 0 and source.reconnects == 0, "none is rejected")
    drill.check(all(any(lo <= (s or 0) < lo + 15 for s in stamps) for lo in (15, *sizes)), "each size has results")


@fault("empty and garbled JPEG", "Data that cannot be decoded is counted and has no result.")
def _garbled(drill: Drill) -> None:
    garbled = {30: b"", 33: b"", 36: b""} | {number: os.urandom(5000) for number in range(39, 45)}
    seen, source = _play_mjpeg(drill, lambda n, jpeg: garbled.get(n, jpeg))
    wrong = sum(one.stamp is None or 39 <= one.stamp < 45 for one in seen)
    drill.say(f"rejected {dict(source.rejections)}, {wrong} passed")
    drill.check(wrong == 0, "none has a result")
    drill.check(source.rejected >= 6, "they are counted")


@fault("MJPEG camera is killed and returns", _RETURNS, slow=True)
def _mjpeg_returns(drill: Drill) -> None:
    _away_and_back(drill, partial(MjpegServer, _camera(), 30.0))


@fault("RTSP camera is killed and returns", _RETURNS, slow=True)
def _rtsp_returns(drill: Drill) -> None:
    if missing := RtspServer.missing():
        raise NotHereError(missing)
    _away_and_back(drill, RtspServer)


def _away_and_back(drill: Drill, start: Callable[[int], MjpegServer | RtspServer]) -> None:
    server = start(0)
    killed: list[float] = []
    came_back: list[float] = []

    def steer(seen: list[Seen]) -> bool:
        nonlocal server
        if not killed and len(seen) >= 30:
            server.close()
            killed.append(time.monotonic())
        elif killed and not came_back and time.monotonic() - killed[0] > 3.0:
            server = start(server.port)
            came_back.append(time.monotonic())
        return bool(came_back) and seen[-1].at > came_back[0] + 0.5

    try:
        seen = drill.play(open_source(server.url), steer)
    finally:
        server.close()
    during = [one for one in seen if killed[0] + 0.5 < one.at < came_back[0]]
    first = min(one.at for one in seen if one.at > came_back[0]) - came_back[0]
    drill.say(f"away for {came_back[0] - killed[0]:.1f} s; the first result {first:.2f} s after its return")
    drill.check(not during, "no result while it is away")
    drill.check(first < RETURN_SECONDS, "a result within 2 s of its return")


def _play_and_signal(
    drill: Drill, number: signal.Signals, stall: float, until: Callable[[list[Seen], float, CapturedSource], bool]
) -> tuple[list[Seen], CapturedSource, int, float]:
    """Signal the capture process after 30 results; gives results, source, process and the time of the signal."""
    signalled: list[tuple[int, float]] = []

    def steer(seen: list[Seen]) -> bool:
        if not signalled and len(seen) >= 30:
            assert source.pid is not None
            os.kill(source.pid, number)
            signalled.append((source.pid, time.monotonic()))
        return bool(signalled) and until(seen, signalled[0][1], source)

    with MjpegServer(_camera()) as server:
        source = cast(CapturedSource, open_source(server.url, stall=stall))
        seen = drill.play(source, steer)
    return seen, source, *signalled[0]


@fault("the capture process is killed (kill -9)", "A new one takes over within 2 s; what the old one held is counted.")
def _capture_killed(drill: Drill) -> None:
    seen, source, _, killed = _play_and_signal(drill, signal.SIGKILL, 5.0, lambda seen, at, _: seen[-1].at > at + 0.5)
    back = next(one.at for one in seen if one.at > killed + 0.1) - killed
    drill.say(f"back after {back:.2f} s, reconnects {source.reconnects}")
    drill.check(source.reconnects == 1, "a new process reopens it")
    drill.check(back < RETURN_SECONDS, "within 2 s")


@fault(
    "the capture process is blocked (SIGSTOP)",
    "A silent process is killed after its time limit, and replaced.",
    slow=True,
)
def _capture_blocked(drill: Drill) -> None:
    seen, _, blocked, _ = _play_and_signal(
        drill, signal.SIGSTOP, 1.0, lambda seen, blocked, source: source.reconnects == 1 and len(seen) >= 60
    )
    gap = max(after.at - before.at for before, after in pairwise(seen))
    gone = True
    with suppress(ProcessLookupError):
        os.kill(blocked, 0)
        gone = False
    drill.say(f"back after {gap:.2f} s, the blocked process is gone: {gone}")
    drill.check(gone, "the blocked process is gone")
    drill.check(gap < 1.0 + RETURN_SECONDS, "within 2 s of the end of its patience of 1 s")


@fault("a whole video", "It is played to the last frame that OpenCV can read, and each frame has a result.")
def _whole_video(drill: Drill) -> None:
    path = _video(drill)
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    capture.release()
    source = open_source(path)
    seen = drill.play(source, lambda seen: False)
    drill.say(f"OpenCV reads {count} frames, PyAV {source.received}; last result: frame {seen[-1].result.index}")
    drill.check(source.received >= count, "as many frames as OpenCV reads")
    drill.check(seen[-1].result.index >= count - 1, "the last frame that OpenCV reads has a result")
    drill.check(source.dropped == 0, "none is dropped")


@fault(
    "a damaged video (H.264)",
    "Most damaged frames are kept from the oracle and counted; the rest of the file is played.",
)
def _damaged_h264(drill: Drill) -> None:
    whole, damaged = _video(drill), drill.folder / "damaged.mp4"
    flip_bytes(whole, damaged, flips=12, seed=0, part=0.7)
    with open_source(whole) as source:
        reference = {frame.index: frame.image for frame in source}
    shown: dict[int, NDArray[np.uint8]] = {}

    class Keep:
        def write(self, frame: Frame, result: Result) -> None:
            shown[frame.index] = frame.image

    source = open_source(damaged)
    drill.play(source, lambda seen: False, sinks=[Keep()])
    visible = [n for n, image in shown.items() if cv2.PSNR(image, reference[n]) < 30]
    share = 1 - len(visible) / max(1, len(visible) + source.rejected)
    passed = f"{len(visible)} visibly damaged (PSNR below 30 dB) passed"
    drill.say(f"{source.rejected} rejected; {passed}: {share:.0%} caught")
    drill.check(source.rejected > 0, "damaged frames are rejected")
    drill.check(share >= 0.9, "at least 90 % of them are caught")
    drill.check(max(shown, default=0) >= 0.7 * len(reference), "it goes on after the last damage")


def _video(drill: Drill) -> Path:
    if drill.video is not None:
        return drill.video
    encode_h264(path := drill.folder / "whole.mp4", 240)
    return path


CASES = [_truncated, _black, _frozen, _resolution, _garbled, _mjpeg_returns, _rtsp_returns]
CASES += [_capture_killed, _capture_blocked, _whole_video, _damaged_h264]
