"""The window: real ones under Xvfb, and the reasons why there can be none."""

import ctypes
import os
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from rws.edge.sinks import window as show
from rws.edge.sinks.background import BackgroundSink
from rws.edge.sinks.window import WindowSink
from rws.edge.tasks.annotate import annotate
from rws.errors import RwsError
from support.fakes import StillClock, make_frame, make_result

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays of X11")

PROGRAM = """
import sys, time
from rws.edge.sinks.window import WindowSink
from support.fakes import make_frame, make_result

with WindowSink("rws test", on_close=lambda: print("asked to stop", flush=True)) as sink:
    for index in range(1000):
        sink.write(make_frame(index, value=200), make_result(index, mix={"fog": 0.8}))
        if index == 3:
            print("shown", flush=True)
        if sink.closed:
            break
        time.sleep(0.02)
print("closed" if sink.closed else "never closed", flush=True)
"""


@pytest.fixture
def start_display(monkeypatch):
    """Start an X server of our own, which becomes the display; several in a row if the last one has ended."""
    if shutil.which("Xvfb") is None:
        if "RWS_REQUIRE_SYSTEM" in os.environ:
            pytest.fail("Xvfb is not installed")
        pytest.skip("needs Xvfb")
    servers = []

    def start():
        read, write = os.pipe()
        command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
        servers.append(subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL))
        os.close(write)
        with os.fdopen(read) as pipe:
            monkeypatch.setenv("DISPLAY", f":{int(pipe.readline())}")
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()
        server.wait()


@pytest.fixture
def display(start_display):
    """The name of a display of our own."""
    start_display()
    return os.environ["DISPLAY"]


class Event(ctypes.Structure):
    """XKeyEvent and XClientMessageEvent: both begin alike, and an XEvent has 24 longs."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("rest", ctypes.c_ubyte * 192),
    )


class Key(ctypes.Structure):
    _fields_ = (
        *Event._fields_[:-1],
        ("root", ctypes.c_ulong),
        ("subwindow", ctypes.c_ulong),
        ("time", ctypes.c_ulong),
        ("places", ctypes.c_int * 4),
        ("state", ctypes.c_uint),
        ("keycode", ctypes.c_uint),
        ("same_screen", ctypes.c_int),
        ("rest", ctypes.c_ubyte * 192),
    )


class Message(ctypes.Structure):
    _fields_ = (
        *Event._fields_[:-1],
        ("kind", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
        ("rest", ctypes.c_ubyte * 192),
    )


class Hand:
    """Presses keys and clicks windows away, as a person at the display would."""

    def __init__(self, display):
        self.x = ctypes.CDLL("libX11.so.6")
        self.x.XOpenDisplay.restype = ctypes.c_void_p
        self.x.XDefaultRootWindow.restype = self.x.XInternAtom.restype = ctypes.c_ulong
        self.display = ctypes.c_void_p(self.x.XOpenDisplay(display.encode()))
        self.root = ctypes.c_ulong(self.x.XDefaultRootWindow(self.display))

    def find(self, title):
        """The window of that title."""
        found = self._search(self.root, title.encode())
        assert found is not None
        return found

    def press(self, window, name):
        code = self.x.XKeysymToKeycode(self.display, ctypes.c_ulong(self.x.XStringToKeysym(name.encode())))
        for kind in (2, 3):  # KeyPress, KeyRelease
            self._send(window, Key(type=kind, window=window.value, root=self.root.value, keycode=code, same_screen=1))

    def close(self, window):
        protocols, delete = (
            self.x.XInternAtom(self.display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")
        )
        data = (ctypes.c_long * 5)(delete)
        self._send(window, Message(type=33, window=window.value, kind=protocols, format=32, data=data))

    def _send(self, window, event):
        assert self.x.XSendEvent(
            self.display, window, 1, ctypes.c_long(1 if event.type < 4 else 0), ctypes.byref(event)
        )
        self.x.XFlush(self.display)

    def _search(self, window, title):
        name, count = ctypes.c_char_p(), ctypes.c_uint()
        children = ctypes.POINTER(ctypes.c_ulong)()
        if self.x.XFetchName(self.display, window, ctypes.byref(name)) and name.value == title:
            return window
        others = [ctypes.byref(ctypes.c_ulong()) for _ in range(2)]
        self.x.XQueryTree(self.display, window, *others, ctypes.byref(children), ctypes.byref(count))
        for index in range(count.value):
            found = self._search(ctypes.c_ulong(children[index]), title)
            if found is not None:
                return found
        return None


@pytest.fixture
def viewer(display):
    """A program that shows frames, and a hand at its display."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "shown\n"
        yield process, Hand(display)
        process.kill()


def test_the_frame_is_on_the_screen(viewer, display):
    image_grab = pytest.importorskip("PIL.ImageGrab")
    expected = annotate(make_frame(value=200).image, make_result(3, mix={"fog": 0.8}))
    deadline = time.monotonic() + 20
    while True:
        screen = np.asarray(image_grab.grab(xdisplay=display))
        # All but the frame's number at the bottom, which moves on.
        found = cv2.matchTemplate(screen, expected[: expected.shape[0] - 30], cv2.TM_SQDIFF_NORMED)
        if found.min() < 0.01:
            break
        assert time.monotonic() < deadline, f"the frame is not on the screen: it differs by {found.min():.3f}"
        time.sleep(0.2)
    if "RWS_SCREENSHOT" in os.environ:
        cv2.imwrite(os.environ["RWS_SCREENSHOT"], screen[..., ::-1])


@pytest.mark.parametrize("how", ["q", "Escape", "close"])
def test_closing_the_window_asks_the_run_to_stop(viewer, how):
    process, hand = viewer
    window = hand.find("rws test")
    if how == "close":
        hand.close(window)
    else:
        hand.press(window, how)
    assert process.stdout.read() == "asked to stop\nclosed\n"
    assert process.wait() == 0


def test_other_keys_change_nothing(viewer):
    process, hand = viewer
    hand.press(hand.find("rws test"), "w")
    time.sleep(0.3)
    assert process.poll() is None


def test_a_missing_display_is_an_error_before_anything_aborts(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(RwsError, match=r"no display here .* --serve, or write them to a file with --save"),
        WindowSink(),
    ):
        pass


def test_a_display_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    with pytest.raises(RwsError, match=r"no window can be opened here \(.*:987"), WindowSink():
        pass


HEADLESS = """
raise Exception("error: (-2:Unspecified error) The function is not implemented. Rebuild the library with Windows, GTK+")
"""


def test_opencv_without_windows(monkeypatch, tmp_path):
    (tmp_path / "cv2.py").write_text(HEADLESS)
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(RwsError, match=r"uninstall that package and `pip install --force-reinstall opencv-python`"),
        WindowSink(),
    ):
        pass


@pytest.mark.parametrize(
    ("child", "message"), [("raise SystemExit(3)", "exit code 3"), ("import time; time.sleep(60)", "within 0.5 s")]
)
def test_a_child_that_fails_without_a_word(monkeypatch, child, message):
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.setattr(show, "CHILD", child)
    monkeypatch.setattr(show, "OPEN_TIMEOUT", 0.5)
    with pytest.raises(RwsError, match=message), WindowSink():
        pass


def test_a_display_that_dies_ends_the_window_alone_and_it_comes_back(start_display, monkeypatch):
    display = start_display()
    clock = StillClock()
    sink = BackgroundSink(WindowSink("rws test"), name="window", on_failure="reopen", clock=clock)
    with sink:
        wait_for(lambda: show_one(sink) and sink.written > 2)
        display.kill()
        display.wait()
        wait_for(lambda: show_one(sink) and sink.failures)
        status = sink.status()
        assert status.state == "failing"
        assert "the window is lost" in status.error
        start_display()
        clock.now += 100
        failed = sink.failed
        wait_for(lambda: show_one(sink) and sink.written > status.written)
        clock.now += 100
        wait_for(lambda: show_one(sink) and sink.status().state == "up")
        assert sink.failed == failed


def show_one(sink):
    sink.write(make_frame(sink.accepted), make_result(sink.accepted))
    return True


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
