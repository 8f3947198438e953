"""Annotated frames in a window, for `rws run --show`."""

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np
from numpy.typing import NDArray

from rws.edge.common.child import python_command
from rws.edge.common.closing import Closing
from rws.edge.pipeline import Result
from rws.edge.tasks.annotate import annotate
from rws.errors import RwsError
from rws.records import Frame

ESCAPE = 27
ELSEWHERE = "see the frames in a browser with --serve, or write them to a file with --save"
CHILD = "from rws.edge.sinks.window import show_frames; show_frames(sys.argv[1])"
OPEN_TIMEOUT, CLOSE_TIMEOUT = 60.0, 2.0  # seconds
REFRESH = 20  # milliseconds between two looks at keys and mouse
CLOSED = 10  # exit code: somebody has closed the window
HEAD = struct.Struct("<II")  # height and width of the image that follows, uint8, (H, W, 3), BGR


class WindowSink(Closing):
    """Shows annotated frames (`rws.edge.tasks.annotate.annotate`) in a window. A context manager that closes it.

    The window belongs to a separate process: if the display disappears, the window system ends that one. `on_close` is
    called once, in another thread, if somebody closes the window or presses Esc or q in it; then `closed` is True, and
    later frames are not shown.

    Raises an `RwsError` on entry if no window can be opened here, and later if it is lost; it can be entered again.
    """

    def __init__(self, title: str = "rws", on_close: Callable[[], None] = lambda: None) -> None:
        self.title, self._on_close = title, on_close
        self.closed = False
        self._child: subprocess.Popen[bytes] | None = None

    def write(self, frame: Frame, result: Result) -> None:
        """Draw the result next to the frame and show it; raise an `RwsError` if the window is lost."""
        if self.closed or self._child is None or self._child.stdin is None:
            return
        image = annotate(frame.image, result, frame.original)
        try:
            self._child.stdin.write(HEAD.pack(*image.shape[:2]) + cv2.cvtColor(image, cv2.COLOR_RGB2BGR).tobytes())
            self._child.stdin.flush()
        except OSError as error:
            if self._child.wait() != CLOSED:
                raise RwsError(f"the window is lost; check the display, or {ELSEWHERE}") from error

    def __enter__(self) -> "WindowSink":
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise RwsError(
                f"there is no display here (neither DISPLAY nor WAYLAND_DISPLAY is set); run this in a desktop "
                f"session, or {ELSEWHERE}"
            )
        pipe = subprocess.PIPE
        # In a separate session, so that Ctrl-C reaches the run only.
        self._child = child = subprocess.Popen(
            python_command(CHILD, self.title), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        assert child.stdout is not None
        late = threading.Timer(OPEN_TIMEOUT, child.kill)
        late.start()
        opened = child.stdout.read(1)
        late.cancel()
        if not opened:
            raise _no_window(child)
        threading.Thread(target=self._watch, args=(child,), name="rws window", daemon=True).start()
        return self

    def close(self) -> None:
        """Close the window."""
        child, self._child = self._child, None
        if child is None or child.stdin is None:
            return
        with suppress(OSError):
            child.stdin.close()
        try:
            child.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        if child.wait() == CLOSED:
            self._on_close()
            self.closed = True


def show_frames(title: str) -> None:
    """Show the images that are sent to stdin, until it ends or somebody closes the window; then end the process."""
    newest: list[NDArray[np.uint8]] = []
    cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    cv2.waitKey(1)
    os.write(1, b"+")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads it from now on
    reader = threading.Thread(target=_read, args=(newest,), daemon=True)
    reader.start()
    resized = False
    while reader.is_alive():
        if newest:
            image = newest.pop()
            if not resized:
                cv2.resizeWindow(title, image.shape[1], image.shape[0])
                resized = True
            cv2.imshow(title, image)
        key = cv2.waitKey(REFRESH) & 0xFF
        if key in (ESCAPE, ord("q"), ord("Q")) or not _is_open(title):
            os._exit(CLOSED)  # without waiting for the thread that reads
    os._exit(0)


def _read(newest: list[NDArray[np.uint8]]) -> None:
    stream = sys.stdin.buffer
    while len(head := stream.read(HEAD.size)) == HEAD.size:
        height, width = HEAD.unpack(head)
        pixels = stream.read(height * width * 3)
        if len(pixels) < height * width * 3:
            return
        newest[:] = [np.frombuffer(pixels, np.uint8).reshape(height, width, 3)]


def _is_open(title: str) -> bool:
    try:
        return bool(cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:  # raised by Qt if the last window is closed
        return False


def _no_window(child: subprocess.Popen[bytes]) -> RwsError:
    said = child.communicate()[1].decode(errors="replace").strip()
    if "not implemented" in said:
        return RwsError(
            "this OpenCV is built without windows, as opencv-python-headless is; uninstall that package and `pip "
            f"install --force-reinstall opencv-python`, or {ELSEWHERE}"
        )
    lines = said.splitlines() or [f"exit code {child.returncode}, within {OPEN_TIMEOUT:g} s"]
    reason = lines[-1 if lines[0].startswith("Traceback") else 0]
    return RwsError(f"no window can be opened here ({reason}); check that the display may be used, or {ELSEWHERE}")
