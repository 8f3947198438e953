"""Annotated frames in a window, for `rws run --show`."""

import os
import subprocess
import sys
from collections.abc import Callable

import cv2

from rws.edge.common.child import python_command
from rws.edge.common.closing import Closing
from rws.edge.pipeline import Result
from rws.edge.tasks.annotate import annotate
from rws.errors import RwsError
from rws.records import Frame

ESCAPE = 27
ELSEWHERE = "see the frames in a browser with --serve, or write them to a file with --save"

# If no window can be opened, some builds of OpenCV end the process, so another process tries first.
PROBE = "import cv2; cv2.namedWindow('rws'); cv2.waitKey(1)"
PROBE_TIMEOUT = 60.0  # seconds


class WindowSink(Closing):
    """Shows annotated frames (`rws.edge.tasks.annotate.annotate`) in a window. A context manager that closes it.

    OpenCV's windows belong to one thread, on some systems the main one: do not wrap this sink in a `BackgroundSink`.
    If the display disappears, the window system ends the process. `on_close` is called once if somebody closes the
    window or presses Esc or q in it; then `closed` is True, and later frames are not shown.

    Raises an `RwsError` on entry if no window can be opened here.
    """

    def __init__(self, title: str = "rws", on_close: Callable[[], None] = lambda: None) -> None:
        self.title, self._on_close = title, on_close
        self.closed = self._shown = False

    def write(self, frame: Frame, result: Result) -> None:
        """Draw the result next to the frame and show it; raise an `RwsError` if the window system refuses it."""
        if self.closed:
            return
        image = annotate(frame.image, result, frame.original)
        try:
            if not self._shown:
                cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
                cv2.resizeWindow(self.title, image.shape[1], image.shape[0])
                self._shown = True
            cv2.imshow(self.title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            raise RwsError(f"the frame cannot be shown ({error.err}); {ELSEWHERE}") from error
        self.refresh()

    def refresh(self) -> None:
        """Process keys and mouse; call it a few times per second while no frame comes."""
        if not self._shown or self.closed:
            return
        key = cv2.waitKey(1) & 0xFF
        if key in (ESCAPE, ord("q"), ord("Q")) or not self._is_open():
            _close_windows()
            self.closed = True
            self._on_close()

    def __enter__(self) -> "WindowSink":
        _check_display()
        return self

    def close(self) -> None:
        """Close the window."""
        if self._shown and not self.closed:
            _close_windows()

    def _is_open(self) -> bool:
        try:
            return bool(cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) >= 1)
        except cv2.error:  # raised by Qt if the last window is closed
            return False


def _close_windows() -> None:
    # Not by name, because a window that is closed already could not be destroyed.
    cv2.destroyAllWindows()
    cv2.waitKey(1)


def _check_display() -> None:
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RwsError(
            f"there is no display here (neither DISPLAY nor WAYLAND_DISPLAY is set); run this in a desktop session, "
            f"or {ELSEWHERE}"
        )
    try:
        found = subprocess.run(python_command(PROBE), capture_output=True, timeout=PROBE_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise RwsError(f"no window has opened within {PROBE_TIMEOUT:g} s; {ELSEWHERE}") from error
    if found.returncode == 0:
        return
    said = found.stderr.decode(errors="replace").strip()
    if "not implemented" in said:
        raise RwsError(
            "this OpenCV is built without windows, as opencv-python-headless is; uninstall that package and `pip "
            f"install --force-reinstall opencv-python`, or {ELSEWHERE}"
        )
    reason = said.splitlines()[0] if said else f"exit code {found.returncode}"
    raise RwsError(f"no window can be opened here ({reason}); check that the display may be used, or {ELSEWHERE}")
