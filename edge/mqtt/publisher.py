"""Publishes the state of each camera to a broker, from a thread that the frame loop never waits for."""

import json
import logging
import random
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from rws.edge.common.closing import Closing
from rws.edge.monitoring.events import ONLY, CameraEvent, EventWatch
from rws.edge.monitoring.health import problem_of
from rws.edge.monitoring.monitor import Monitor
from rws.edge.monitoring.run_status import RunStatus
from rws.edge.mqtt.discovery import announcement, availability_topic, discovery_topics, topic_of
from rws.edge.mqtt.options import MqttOptions
from rws.edge.pipeline import Result, describe_mix
from rws.edge.tasks.annotate import draw, to_jpeg
from rws.errors import first_line
from rws.records import Frame, SinkStatus, utc
from rws.text import shown

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the cameras
EVERY = 10.0  # seconds after which a state is published although nothing important has changed
KEEP_ALIVE, CONNECT_TIMEOUT, ANSWER_TIMEOUT = 30, 5.0, 20.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds until the broker is tried again
MOST_EVENTS, MOST_IN_FLIGHT = 100, 20  # messages
IMAGE_WIDTH = 640
LAST_WORDS = 2.0  # seconds in which the broker hears that the run ends
SILENT = 10.0  # seconds without a result after which a camera is not online


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes
    retain: bool = True


class MqttPublisher(Closing):
    """A sink that keeps the newest frame of each camera, and a thread that publishes what has changed.

    States, announcements and images are retained by the broker; of each topic only the newest waits while the broker is
    away, and what it replaces counts as dropped, so memory stays bounded. Of the events that `events` tells, up to a
    hundred wait. All are sent with QoS 1. `monitors` are by the name of the camera, "" for the only one; they may
    change: a camera that is gone is taken out of Home Assistant.
    """

    def __init__(self, options: MqttOptions, monitors: Mapping[str, Monitor], events: EventWatch) -> None:
        self.options, self._monitors, self._watch = options, monitors, events
        events.listeners.append(self._tell)
        self._newest: dict[str, tuple[Frame, Result]] = {}
        self._counts: Counter[str] = Counter()
        self._error, self._failures = "", 0
        self._waiting: dict[str, _Message] = {}  # by topic, the oldest first
        self._events = deque[_Message]()
        self._sent: dict[int, tuple[_Message, float]] = {}  # by number: not acknowledged yet, and when it was sent
        self._said: dict[str, tuple[object, float]] = {}  # of each camera: what matters of its last state, and when
        self._pictured: dict[str, float] = {}
        self._known, self._announced = set[str](), set[str]()  # cameras: ever, and since the last connection
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name="rws mqtt", daemon=True)

    def write(self, frame: Frame, result: Result) -> None:
        """Take the newest frame of a camera; its image must not change afterwards."""
        self._newest[result.camera or ONLY] = frame, result

    def status(self) -> SinkStatus:
        """Return whether the broker takes messages, and their counters."""
        with self._lock:
            counts = {key: self._counts[key] for key in ("accepted", "written", "dropped")}
            waiting = len(self._waiting) + len(self._events)
            state = "failing" if self._error else "up"
            return SinkStatus(state, self._error, self._failures, **counts, waiting=waiting, writing=len(self._sent))

    def __enter__(self) -> "MqttPublisher":
        self._thread.start()
        return self

    def close(self) -> None:
        """Say that the run has ended, if the broker is there, and stop; a second call does nothing."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(CONNECT_TIMEOUT + LAST_WORDS)

    # ---- the connection

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                client = self._client()
                self._connect(client)
                pause = FIRST_PAUSE
                self._serve(client)
            except Exception as error:  # whatever it is, the thread goes on
                self._lost(error)
            if self._stop.is_set():
                return
            end = time.monotonic() + pause * (1 + random.random()) / 2
            pause = min(2 * pause, LONGEST_PAUSE)
            while time.monotonic() < end and not self._stop.wait(min(LOOK, max(0.0, end - time.monotonic()))):
                with suppress(Exception):  # it is said when it is tried again
                    self._look()

    def _client(self) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect_timeout = CONNECT_TIMEOUT
        if self.options.user or self.options.password:
            client.username_pw_set(self.options.user, self.options.password)
        client.will_set(availability_topic(self.options), "offline", qos=1, retain=True)
        client.on_publish = self._delivered
        return client

    def _connect(self, client: paho.Client) -> None:
        if self.options.tls:
            client.tls_set(ca_certs=None if self.options.ca is None else str(self.options.ca))
        answers: list[ReasonCode] = []
        client.on_connect = lambda client, data, flags, reason, properties: answers.append(reason)
        client.connect(self.options.host, self.options.port, KEEP_ALIVE)
        end = time.monotonic() + CONNECT_TIMEOUT
        while not answers:
            if client.loop(0.2) != paho.MQTT_ERR_SUCCESS and not answers:
                raise ConnectionError("the broker has closed the connection")
            if time.monotonic() > end:
                raise TimeoutError("the broker does not answer")
        if answers[0].is_failure:
            raise ConnectionError(f"the broker refuses the connection: {answers[0]}")
        with self._lock:
            if self._error:
                log.warning("%s works again", self.options.name)
            self._error = ""
        self._said.clear()
        self._announced.clear()
        self._offer(_Message(availability_topic(self.options), b"online"))

    def _serve(self, client: paho.Client) -> None:
        """Publish until the run ends; an OSError if the connection is lost."""
        looked = 0.0
        while not self._stop.is_set():
            if time.monotonic() >= looked + LOOK:
                looked = time.monotonic()
                self._look()
            self._send(client)
            self._turn(client)
            if any(time.monotonic() > at + ANSWER_TIMEOUT for _, at in self._sent.values()):
                raise TimeoutError("the broker does not acknowledge messages")
        # Before all that waits. If it is not acknowledged, the connection just ends, and the last will is published.
        with self._lock:
            self._counts["accepted"] += 1
            last = self._publish(client, _Message(availability_topic(self.options), b"offline"))
        end = time.monotonic() + LAST_WORDS
        while (self._waiting or self._events or self._sent) and time.monotonic() < end:
            self._turn(client)
            if last not in self._sent:
                self._send(client)
        if last not in self._sent:
            client.disconnect()

    def _turn(self, client: paho.Client) -> None:
        if (code := client.loop(0.1)) != paho.MQTT_ERR_SUCCESS:
            raise ConnectionError(paho.error_string(code).rstrip("."))

    def _send(self, client: paho.Client) -> None:
        while len(self._sent) < MOST_IN_FLIGHT:
            with self._lock:
                if self._events:
                    message = self._events.popleft()
                elif self._waiting:
                    message = self._waiting.pop(next(iter(self._waiting)))
                else:
                    return
                self._publish(client, message)

    def _publish(self, client: paho.Client, message: _Message) -> int:
        """Send a message and return its number; only this thread sends, and hears of acknowledgements."""
        info = client.publish(message.topic, message.payload, qos=1, retain=message.retain)
        with self._lock:
            self._sent[info.mid] = message, time.monotonic()
        return info.mid

    def _delivered(self, client: paho.Client, data: object, number: int, *_: object) -> None:
        with self._lock:
            self._counts["written"] += self._sent.pop(number, None) is not None

    def _lost(self, error: Exception) -> None:
        """Note why there is no connection, and keep what was not acknowledged, unless something newer waits."""
        reason = shown(f"{self.options.name}: {_explained(error)}")
        with self._lock:
            first = reason != self._error
            self._error, self._failures = reason, self._failures + 1
            for message, _ in reversed(self._sent.values()):
                if not message.retain:
                    self._events.appendleft(message)
                elif message.topic in self._waiting:
                    self._counts["dropped"] += 1
                else:
                    self._waiting[message.topic] = message
            self._sent.clear()
        if first:
            log.warning("%s; it is tried again", reason)

    # ---- what is published

    def _offer(self, message: _Message) -> None:
        with self._lock:
            self._counts["accepted"] += 1
            self._counts["dropped"] += self._waiting.pop(message.topic, None) is not None
            self._waiting[message.topic] = message

    def _look(self) -> None:
        """Offer what has changed of the cameras."""
        monitors = {name or ONLY: monitor for name, monitor in list(self._monitors.items())}
        for name, monitor in monitors.items():
            status, now = monitor.status(), time.monotonic()
            if name not in self._announced:
                self._announced.add(name)
                self._known.add(name)
                for topic, entity in discovery_topics(self.options, name):
                    self._offer(_json(topic, announcement(self.options, name, entity, status.bundle)))
            state = camera_state(status, monitor.paused, self._watch.degraded(name))
            matters = state["state"], state["problem"], state["degraded"], state["online"]
            said, at = self._said.get(name, (None, 0.0))
            if matters != said or now >= at + EVERY:
                self._said[name] = matters, now
                self._offer(_json(topic_of(self.options, name, "state"), state))
            if self.options.images and now >= self._pictured.get(name, -EVERY) + self.options.images:
                self._picture(name, now)
        for name in self._known - monitors.keys():
            self._forget(name)

    def _picture(self, name: str, now: float) -> None:
        if newest := self._newest.get(name):
            self._pictured[name] = now
            frame, result = newest
            jpeg = to_jpeg(draw(frame.image, result, IMAGE_WIDTH))
            self._offer(_Message(topic_of(self.options, name, "image"), jpeg))

    def _forget(self, name: str) -> None:
        self._known.discard(name)
        self._announced.discard(name)
        topics = [topic for topic, _ in discovery_topics(self.options, name)]
        for topic in (*topics, topic_of(self.options, name, "state"), topic_of(self.options, name, "image")):
            self._offer(_Message(topic, b""))
        for kept in (self._newest, self._said, self._pictured):
            kept.pop(name, None)

    def _tell(self, event: CameraEvent) -> None:
        topic, record = topic_of(self.options, event.camera, "event"), event.to_dict()
        message = _Message(topic, json.dumps(record, ensure_ascii=False).encode(), retain=False)
        with self._lock:
            self._counts["accepted"] += 1
            if len(self._events) >= MOST_EVENTS:
                self._events.popleft()
                self._counts["dropped"] += 1
            self._events.append(message)


def camera_state(status: RunStatus, paused: bool, degraded: bool) -> dict[str, object]:
    """Return what `camera-state/1` documents, in plain types."""
    source, result, since = status.source, status.result, status.since_result_s
    problem = "unknown" if result is None else problem_of(result.belief) or "none"
    severity = None if result is None else round(result.belief.type_severity, 2)
    online = source.state == "running" and since is not None and since < SILENT
    return {
        "schema": "camera-state/1",
        "written_at": utc(status.written_at),
        "state": "paused" if paused else source.state,
        "online": "on" if online else "off",
        "degraded": "on" if degraded else "off",
        "problem": problem,
        "corruption": None if result is None else result.belief.type,
        "severity": severity,
        "health": None if severity is None else round(100 - 20 * severity),
        "patch": None if result is None else describe_mix(result.mix),
        "label": None if result is None else result.summary[0],
        "fps": status.fps,
        "results": status.totals.results,
        "dropped": source.dropped,
        "rejected": sum(status.rejected_by_reason.values()),
        "reconnects": source.reconnects,
    }


def _json(topic: str, record: Mapping[str, object]) -> _Message:
    return _Message(topic, json.dumps(record, ensure_ascii=False).encode())


def _explained(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted ({error.verify_message}); see --mqtt-ca"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection ({error.reason or first_line(error)})"
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
