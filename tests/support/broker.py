"""A real MQTT broker, mosquitto, on loopback, and a client that remembers what it gives."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from rws.edge.faults.servers import free_port

PROGRAM = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
needs_broker = pytest.mark.skipif(
    PROGRAM is None and not os.environ.get("RWS_REQUIRE_SYSTEM"), reason="no mosquitto is installed here"
)


class Broker:
    """Start it, stop it, kill it, at one port; `settings` are lines of its configuration."""

    def __init__(self, folder, *settings):
        self.folder, self.port = folder, free_port()
        lines = [f"listener {self.port} 127.0.0.1", *(settings or ("allow_anonymous true",))]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self.process = None

    def start(self):
        log = (self.folder / "mosquitto.log").open("ab")
        command = [PROGRAM, "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            assert self.process.poll() is None, (self.folder / "mosquitto.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()


class Listener:
    """Subscribes to everything; `messages` is {topic: the last payload}, `history` all of them in order."""

    def __init__(self, port, **login):
        self.messages, self.history, self._changed = {}, [], threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2)
        if login:
            self._client.username_pw_set(login["user"], login["password"])
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_message = self._take
        self._client.reconnect_delay_set(0.1, 0.5)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def _take(self, client, data, message):
        with self._changed:
            self.messages[message.topic] = message.payload
            self.history.append((message.topic, message.payload, message.retain))
            self._changed.notify_all()

    def wait_for(self, condition, seconds=20):
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.messages), seconds), sorted(self.messages)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.disconnect()
        self._client.loop_stop()
