"""What systemd would hear, on real datagram sockets."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from rws.edge.monitoring.systemd import SystemdNotifier


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["path", "abstract"])
def listener(request, tmp_path):
    """A socket that receives, and the value of NOTIFY_SOCKET for it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rws-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.setblocking(False)
        yield receiver, name


def heard(receiver):
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(receiver.recv(4096).decode())
    return messages


def test_the_life_of_a_service(listener):
    receiver, name = listener
    clock = Clock()
    with SystemdNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}, clock) as supervisor:
        assert heard(receiver) == []
        supervisor.ready()
        assert heard(receiver) == ["READY=1"]
        signs = []
        for _ in range(480):
            supervisor.alive()
            signs += [(clock.now - 50, message) for message in heard(receiver)]
            clock.now += 0.125
        assert signs == [(at, "WATCHDOG=1") for at in (0, 15, 30, 45)]
        supervisor.status("12 frames per\nsecond")
        supervisor.status("12 frames per\nsecond")
        supervisor.status("clean")
        assert heard(receiver) == ["STATUS=12 frames per second", "STATUS=clean"]
    assert heard(receiver) == ["STOPPING=1"]
    supervisor.close()
    supervisor.ready()
    assert heard(receiver) == []


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"},
    ],
)
def test_no_signs_of_life_without_a_watchdog(listener, watchdog):
    receiver, name = listener
    with SystemdNotifier({"NOTIFY_SOCKET": name, **watchdog}) as supervisor:
        assert supervisor.watchdog is None
        supervisor.alive()
        assert heard(receiver) == []


def test_the_watchdog_of_this_process(listener):
    receiver, name = listener
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    with SystemdNotifier(environ) as supervisor:
        assert supervisor.watchdog == 1.0
        supervisor.alive()
        assert heard(receiver) == ["WATCHDOG=1"]


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative/path", "/nowhere/at/all", "@nobody listens"])
def test_without_a_listener_nothing_happens(address):
    environ = {"WATCHDOG_USEC": "10"} | ({} if address is None else {"NOTIFY_SOCKET": address})
    with SystemdNotifier(environ) as supervisor:
        supervisor.ready()
        supervisor.status("running")
        supervisor.alive()


def test_messages_are_counted_by_their_outcome(listener, tmp_path):
    _, name = listener
    with SystemdNotifier({"NOTIFY_SOCKET": name}) as supervisor:
        supervisor.ready()
        assert (supervisor.sink_status.state, supervisor.sink_status.written) == ("up", 1)
    with SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as supervisor:
        supervisor.ready()
        status = supervisor.sink_status
    assert (status.state, status.failed) == ("failing", 1)
    assert status.error.startswith("cannot be notified (")


def test_a_listener_that_does_not_read_does_not_delay_the_loop(listener):
    receiver, name = listener
    with SystemdNotifier({"NOTIFY_SOCKET": name}) as supervisor:
        for index in range(5000):
            supervisor.status(f"frame {index}")
        assert 0 < len(heard(receiver)) < 5000
        supervisor.status("read again")
        assert heard(receiver) == ["STATUS=read again"]


def test_the_real_environment_and_no_socket_for_children(listener):
    receiver, name = listener
    code = (
        "import os, subprocess, sys\n"
        "from rws.edge.monitoring.systemd import SystemdNotifier\n"
        "with SystemdNotifier() as supervisor:\n"
        "    supervisor.ready()\n"
        "    found = subprocess.run(['ls', '-l', '/proc/self/fd'], capture_output=True, text=True, close_fds=False)\n"
        "    print('socket' in found.stdout)\n"
    )
    environ = {**os.environ, "NOTIFY_SOCKET": name}
    found = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    assert heard(receiver) == ["READY=1", "STOPPING=1"]
    assert found.stdout == "False\n"
