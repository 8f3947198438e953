"""Faults with real capture processes, real files and real servers on loopback."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rws.edge.faults.harness import Drill, NotHereError, Seen, case
from rws.edge.faults.servers import MjpegServer, RtspServer
from rws.edge.faults.stamp import encode_jpeg, scene, stamped
from rws.edge.faults.videos import encode_h264, flip_bytes
from rws.edge.sources.capture.source import CapturedSource
from rws.edge.sources.open import open_source

SCENES = 8
RETURN_SECONDS = 2.0  # from the return of a camera to its first result


class StampedCamera:
    """JPEG pictures 640 x 480 that carry their number; `faults` replaces those that it has an answer for."""

    def __init__(self, faults: Callable[[int, bytes], bytes | None] = lambda number, picture: picture) -> None:
        self._scenes = [scene(480, 640, seed) for seed in range(SCENES)]
        self._faults = faults

    def __call__(self, number: int) -> bytes | None:
        """The picture of that number."""
        return self._faults(number, encode_jpeg(stamped(self._scenes[number % SCENES], number)))


def mjpeg_case(
    drill: Drill, faults: Callable[[int, bytes], bytes | None], last: int, **options: Any
) -> tuple[list[Seen], CapturedSource]:
    """Play a camera with faults until its picture `last` has a result."""
    server = MjpegServer(StampedCamera(faults))
    try:
        source = open_source(server.url, **options)
        assert isinstance(source, CapturedSource)
        return drill.play(source, lambda seen: bool(seen) and (seen[-1].stamp or 0) >= last), source
    finally:
        server.kill()


@case("truncated JPEG")
def truncated(drill: Drill) -> None:
    """Pictures that were cut are kept from the oracle and counted as damaged."""
    seen, source = mjpeg_case(
        drill, lambda n, picture: picture[: len(picture) // 2] if 30 <= n < 45 else picture, last=60
    )
    wrong = [one.stamp for one in seen if one.stamp is None or 30 <= one.stamp < 45]
    drill.say(f"{source.rejections['damaged'] + source.rejections['undecodable']} of 15 rejected, {len(wrong)} passed")
    drill.check(not wrong, "none of the 15 has a result")
    drill.check(source.rejections["damaged"] + source.rejections["undecodable"] == 15, "all 15 are counted")


@case("black frames")
def black(drill: Drill) -> None:
    """They are kept from the oracle and counted; the camera is not taken for lost."""
    dark = encode_jpeg(np.zeros((480, 640, 3), np.uint8))
    seen, source = mjpeg_case(drill, lambda n, picture: dark if 30 <= n < 45 else picture, last=60)
    drill.say(f"{source.rejections['black']} of 15 rejected, reconnects {source.reconnects}")
    drill.check(source.rejections["black"] == 15, "all 15 are counted as black")
    drill.check(source.reconnects == 0, "the source is not opened anew")
    drill.check(all(one.stamp is not None for one in seen), "only real pictures have results")


@case("frozen picture", slow=True)
def frozen(drill: Drill) -> None:
    """Equal pictures are taken for 2 s, then rejected; the camera is opened anew; then it goes on."""
    held: list[bytes] = []

    def freeze(number: int, picture: bytes) -> bytes:
        if number == 30:
            held.append(picture)
        return held[0] if 30 <= number < 210 else picture

    seen, source = mjpeg_case(drill, freeze, last=240, stall=2.0)
    repeated = sum(one.stamp == 30 for one in seen)
    drill.say(
        f"{repeated} equal pictures passed, {source.rejections['frozen']} rejected, reconnects {source.reconnects}"
    )
    drill.check(source.rejections["frozen"] >= 30, "frozen pictures are rejected")
    drill.check(repeated <= 75, "equal pictures pass for little more than 2 s")
    drill.check(source.reconnects >= 1, "it is opened anew")


@case("the resolution changes", slow=True)
def resolution(drill: Drill) -> None:
    """Every picture of every size has a result."""
    sizes = {30: (720, 1280), 45: (480, 848), 60: (1080, 1920)}
    images = {start: scene(*size, seed=start) for start, size in sizes.items()}

    def resize(number: int, picture: bytes) -> bytes:
        start = max((start for start in sizes if start <= number), default=None)
        return picture if start is None else encode_jpeg(stamped(images[start], number))

    seen, source = mjpeg_case(drill, resize, last=75)
    stamps = [one.stamp for one in seen]
    drill.say(f"{len(seen)} results over 4 sizes, {source.dropped} dropped, {source.rejected} rejected")
    drill.check(None not in stamps, "each picture is whole")
    drill.check(source.rejected == 0 and source.reconnects == 0, "none is rejected")
    drill.check(all(any(lo <= (s or 0) < lo + 15 for s in stamps) for lo in (15, *sizes)), "each size has results")


@case("empty and garbled JPEG")
def garbled(drill: Drill) -> None:
    """What is no picture is counted and has no result."""

    def spoil(number: int, picture: bytes) -> bytes:
        if number in (30, 33, 36):
            return b""
        return os.urandom(5000) if 39 <= number < 45 else picture

    seen, source = mjpeg_case(drill, spoil, last=60)
    wrong = [one.stamp for one in seen if one.stamp is None or 39 <= one.stamp < 45]
    drill.say(f"rejected {dict(source.rejections)}, {len(wrong)} passed")
    drill.check(not wrong, "none has a result")
    drill.check(source.rejected >= 6, "they are counted")


@case("MJPEG camera is killed and returns", slow=True)
def mjpeg_returns(drill: Drill) -> None:
    """A result within 2 s of its return; meanwhile no frame is invented."""
    camera = StampedCamera()
    _away_and_back(drill, lambda port: MjpegServer(camera, port=port))


@case("RTSP camera is killed and returns", slow=True)
def rtsp_returns(drill: Drill) -> None:
    """A result within 2 s of its return; meanwhile no frame is invented."""
    if missing := RtspServer.missing():
        raise NotHereError(missing)
    _away_and_back(drill, RtspServer)


@case("the capture process is killed (kill -9)")
def capture_killed(drill: Drill) -> None:
    """A new one takes over within 2 s; what the old one held is counted."""
    server = MjpegServer(StampedCamera())
    source = open_source(server.url)
    assert isinstance(source, CapturedSource)
    killed: list[float] = []

    def steer(seen: list[Seen]) -> bool:
        if not killed and len(seen) >= 30:
            pid = source.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            killed.append(time.monotonic())
        return bool(killed) and seen[-1].at > killed[0] + 0.5

    try:
        seen = drill.play(source, steer)
    finally:
        server.kill()
    back = next(one.at for one in seen if one.at > killed[0] + 0.1) - killed[0]
    drill.say(f"back after {back:.2f} s, reconnects {source.reconnects}")
    drill.check(source.reconnects == 1, "a new process opens it anew")
    drill.check(back < RETURN_SECONDS, "within 2 s")


@case("the capture process is blocked (SIGSTOP)", slow=True)
def capture_blocked(drill: Drill) -> None:
    """It is killed when it has said nothing for so long, and replaced."""
    server = MjpegServer(StampedCamera())
    source = open_source(server.url, stall=1.0)
    assert isinstance(source, CapturedSource)
    blocked: list[int] = []

    def steer(seen: list[Seen]) -> bool:
        if not blocked and len(seen) >= 30:
            pid = source.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            blocked.append(pid)
        return source.reconnects == 1 and len(seen) >= 60

    try:
        seen = drill.play(source, steer)
    finally:
        server.kill()
    gap = max(after.at - before.at for before, after in pairwise(seen))
    drill.say(f"back after {gap:.2f} s, the blocked process is gone: {not _alive(blocked[0])}")
    drill.check(not _alive(blocked[0]), "the blocked process is gone")
    drill.check(gap < 1.0 + RETURN_SECONDS, "within 2 s of the end of its patience of 1 s")


@case("a whole video")
def whole_video(drill: Drill) -> None:
    """It is played to the last frame that OpenCV can read, and each frame has a result."""
    import cv2

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


@case("a damaged video (H.264)")
def damaged_h264(drill: Drill) -> None:
    """Most damaged frames are kept from the oracle and counted; the rest of the file is played."""
    whole, damaged = _video(drill), drill.folder / "damaged.mp4"
    flip_bytes(whole, damaged, flips=12, seed=0, part=0.7)
    with open_source(whole) as source:
        reference = {frame.index: frame.image for frame in source}
    shown: dict[int, Any] = {}

    class Keep:
        def write(self, frame: Any, result: Any) -> None:
            shown[frame.index] = frame.image

    source = open_source(damaged)
    drill.play(source, lambda seen: False, sinks=[Keep()])
    visible = [n for n, image in shown.items() if _psnr(image, reference[n]) < 30]
    share = 1 - len(visible) / max(1, len(visible) + source.rejected)
    drill.say(
        f"{source.rejected} rejected; {len(visible)} visibly damaged (PSNR below 30 dB) passed: {share:.0%} caught"
    )
    drill.check(source.rejected > 0, "damaged frames are rejected")
    drill.check(share >= 0.9, "at least 90 % of them are caught")
    last = max(shown, default=0)
    drill.check(last >= 0.7 * len(reference), "it goes on after the last damage")


def _video(drill: Drill) -> Path:
    if drill.video is not None:
        return drill.video
    path = drill.folder / "whole.mp4"
    encode_h264(path, 240)
    return path


def _away_and_back(drill: Drill, start: Callable[[int], MjpegServer | RtspServer], away: float = 3.0) -> None:
    """Kill a camera while it is played, and start it again on its port some seconds later."""
    server = start(0)
    killed: list[float] = []
    came_back: list[float] = []

    def steer(seen: list[Seen]) -> bool:
        nonlocal server
        if not killed and len(seen) >= 30:
            server.kill()
            killed.append(time.monotonic())
        elif killed and not came_back and time.monotonic() - killed[0] > away:
            server = start(server.port)
            came_back.append(time.monotonic())
        return bool(came_back) and seen[-1].at > came_back[0] + 0.5

    try:
        seen = drill.play(open_source(server.url), steer)
    finally:
        server.kill()
    during = [one for one in seen if killed[0] + 0.5 < one.at < came_back[0]]
    first = min(one.at for one in seen if one.at > came_back[0]) - came_back[0]
    drill.say(f"away for {came_back[0] - killed[0]:.1f} s; the first result {first:.2f} s after its return")
    drill.check(not during, "no result while it is away")
    drill.check(first < RETURN_SECONDS, "a result within 2 s of its return")


def _psnr(a: Any, b: Any) -> float:
    error = float(((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
