"""Against a real broker that is there, away, killed, closed by a password or a certificate."""

import datetime
import ipaddress
import json
import subprocess
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rws.edge.monitoring.events import EventWatch
from rws.edge.monitoring.monitor import Monitor
from rws.edge.mqtt import MqttPublisher, mqtt_options
from rws.edge.sources.arrays import ArraySource
from rws.oracle.belief import certain
from support.broker import Broker, Listener, needs_broker
from support.fakes import CORRUPTIONS, LEVELS, make_frame, make_result
from support.http import wait_until
from support.records import Reference

pytestmark = needs_broker


def watched(name):
    return Monitor(ArraySource(np.zeros((1, 8, 8, 3), np.uint8), name=f"{name} (rtsp://host)"), bundle="tiny")


@pytest.fixture
def monitors():
    return {"door": watched("door"), "yard": watched("yard")}


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path) as broker:
        yield broker


def show(publisher, monitors, name, corruption="clean", severity=0.0, index=0, at=0.0):
    belief = certain(CORRUPTIONS, LEVELS, corruption, severity)
    mix = {} if corruption == "clean" else {corruption: 0.8}
    result = replace(make_result(index, belief=belief, mix=mix), camera=name, captured_at=at)
    monitors[name].add(result)
    frame = make_frame(index)
    publisher.write(frame, result)
    publisher.watch.write(frame, result)


def publisher(broker, monitors, login="", scheme="mqtt", **options):
    url = f"{scheme}://{login}127.0.0.1:{broker.port}/house"
    watch = EventWatch(monitors)
    made = MqttPublisher(mqtt_options(url, {}, **options), monitors, watch)
    made.watch = watch
    return made


def state(messages, name):
    return json.loads(messages.get(f"house/{name}/state") or b"{}")


def test_states_images_and_announcements_arrive_and_stay(broker, monitors):
    with Listener(broker.port) as listener:
        with publisher(broker, monitors, images=1) as mqtt:
            show(mqtt, monitors, "door", "fog", 3.0)
            listener.wait_for(
                lambda found: state(found, "door").get("problem") == "fog" and "house/door/image" in found
            )
            wait_until(lambda: mqtt.status().waiting + mqtt.status().writing == 0)
            counts = mqtt.status()
        door = state(listener.messages, "door")
        assert Reference.read().complaints(door) == []
        assert (door["corruption"], door["severity"], door["health"], door["patch"]) == ("fog", 3.0, 40, "fog 0.80")
        assert (door["online"], door["degraded"], state(listener.messages, "yard")["online"]) == ("on", "off", "off")
        assert cv2.imdecode(np.frombuffer(listener.messages["house/door/image"], np.uint8), 1).shape[2] == 3
        assert counts.state == "up"
        assert counts.accepted == counts.written + counts.dropped + counts.waiting + counts.writing
        listener.wait_for(lambda found: found["house/status"] == b"offline")
    with Listener(broker.port) as later:
        later.wait_for(lambda found: {"house/door/state", "house/door/image", "house/status"} <= found.keys())
        later.wait_for(lambda found: sum(topic.startswith("homeassistant/") for topic in found) == 2 * 11)
        assert all(retained for _, _, retained in later.history)


def test_a_problem_that_lasts_is_an_event_and_so_is_its_end(broker, monitors):
    with Listener(broker.port) as listener, publisher(broker, monitors) as mqtt:
        for second in range(30):
            show(mqtt, monitors, "door", "fog", 4.0, second, float(second))
        listener.wait_for(lambda found: state(found, "door").get("degraded") == "on")
        for second in range(30, 60):
            show(mqtt, monitors, "door", "clean", 0.0, second, float(second))
        listener.wait_for(lambda found: state(found, "door").get("degraded") == "off")
        listener.wait_for(lambda found: b"recovered" in found.get("house/door/event", b""))
        events = [json.loads(payload) for topic, payload, _ in listener.history if topic == "house/door/event"]
        assert [(event["event"], event["problem"]) for event in events] == [("degraded", "fog"), ("recovered", "fog")]
        assert Reference.read().complaints(events[0]) == []
        assert not any(retained for topic, _, retained in listener.history if topic == "house/door/event")


def test_a_broker_that_is_killed_is_found_again_and_the_state_is_right(broker, monitors, caplog):
    with publisher(broker, monitors, images=0) as mqtt:
        show(mqtt, monitors, "door", "fog", 3.0)
        wait_until(lambda: mqtt.status().written > 20)
        broker.kill()
        wait_until(lambda: mqtt.status().state == "failing")
        for index in range(300):
            show(mqtt, monitors, "door", *(("snow", 4.0) if index % 2 else ("fog", 2.0)), index, float(index))
        show(mqtt, monitors, "door", "snow", 5.0, 301, 400.0)
        broker.start()
        with Listener(broker.port) as listener:
            listener.wait_for(lambda found: state(found, "door").get("problem") == "snow", 60)
            wait_until(lambda: mqtt.status().waiting + mqtt.status().writing == 0)
            assert listener.messages["house/status"] == b"online"
        status = mqtt.status()
        assert status.state == "up"
        assert status.accepted == status.written + status.dropped
    text = caplog.text
    assert text.count("it is tried again") == 1
    assert "works again" in text


def test_without_a_broker_memory_stays_bounded(tmp_path, monitors, monkeypatch):
    monkeypatch.setattr("rws.edge.mqtt.publisher.LOOK", 0.01)
    monkeypatch.setattr("rws.edge.mqtt.publisher.EVERY", 0.01)
    monkeypatch.setattr("rws.edge.mqtt.publisher.FIRST_PAUSE", 0.05)
    with publisher(Broker(tmp_path), monitors, images=0.001) as mqtt:
        for index in range(3000):
            show(mqtt, monitors, "door", *(("fog", 4.0) if index // 20 % 2 else ("clean", 0.0)), index, float(index))
        wait_until(lambda: mqtt.status().accepted > 400)
        status = mqtt.status()
    assert status.waiting <= 100 + 2 * 13 + 1
    assert status.accepted == status.dropped + status.waiting + status.writing
    assert "Connection refused" in status.error


def test_a_camera_that_goes_is_taken_out(broker, monitors):
    with Listener(broker.port) as listener, publisher(broker, monitors) as mqtt:
        show(mqtt, monitors, "yard")
        listener.wait_for(lambda found: {"house/yard/state", "house/yard/image"} <= found.keys())
        del monitors["yard"]
        listener.wait_for(lambda found: not found["house/yard/state"] and not found["house/yard/image"])
        kept = [topic for topic, payload in listener.messages.items() if "yard" in topic and payload]
        assert kept == []
        assert state(listener.messages, "door")["state"] == "running"


def test_a_camera_that_goes_while_the_broker_is_away_is_taken_out_later(tmp_path, monitors):
    kept = ("allow_anonymous true", "persistence true", f"persistence_location {tmp_path}/", "user root")
    with Broker(tmp_path, *kept) as broker, publisher(broker, monitors, images=0) as mqtt:
        wait_until(lambda: mqtt.status().written > 20)
        broker.process.terminate()
        broker.process.wait()
        wait_until(lambda: mqtt.status().state == "failing")
        del monitors["yard"]
        broker.start()
        wait_until(lambda: mqtt.status().state == "up" and mqtt.status().waiting + mqtt.status().writing == 0, 40)
        with Listener(broker.port) as listener:
            listener.wait_for(lambda found: "house/door/state" in found)
            time.sleep(0.5)
            assert [topic for topic, payload in listener.messages.items() if "yard" in topic and payload] == []


def test_a_wrong_password_is_one_line(tmp_path, monitors, caplog):
    (tmp_path / "users").touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(tmp_path / "users"), "me", "right"], check=True, capture_output=True)
    with Broker(tmp_path, "allow_anonymous false", f"password_file {tmp_path}/users", "user root") as broker:
        with publisher(broker, monitors, "me:wrong@") as mqtt:
            wait_until(lambda: mqtt.status().failures > 1)
            assert "the broker refuses the connection: Not authorized" in mqtt.status().error
        assert len([line for line in caplog.text.splitlines() if "127.0.0.1" in line]) == 1
        assert "wrong" not in caplog.text
        with (
            publisher(broker, monitors, "me:right@") as mqtt,
            Listener(broker.port, user="me", password="right") as one,
        ):
            one.wait_for(lambda found: found.get("house/status") == b"online")
            assert mqtt.status().state == "up"


def certificate(folder, name):
    """A certificate that has signed itself, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(*plain))


def test_a_certificate_that_nobody_trusts_is_one_line(tmp_path, monitors, caplog):
    certificate(tmp_path, "broker")
    certificate(tmp_path, "other")
    files = (f"certfile {tmp_path}/broker.pem", f"keyfile {tmp_path}/broker.key", "user root")
    with Broker(tmp_path, "allow_anonymous true", *files) as broker:
        with publisher(broker, monitors, scheme="mqtts", ca=tmp_path / "other.pem") as mqtt:
            wait_until(lambda: mqtt.status().failures > 1)
            assert "the broker's certificate is not trusted" in mqtt.status().error
        assert len([line for line in caplog.text.splitlines() if "mqtts://" in line]) == 1
        with publisher(broker, monitors, scheme="mqtts", ca=tmp_path / "broker.pem") as mqtt:
            wait_until(lambda: mqtt.status().written > 5)
        with publisher(broker, monitors, scheme="mqtt") as mqtt:
            wait_until(lambda: mqtt.status().failures > 0, 30)


def test_the_loop_never_waits_for_the_broker(tmp_path, monitors):
    with publisher(Broker(tmp_path), monitors) as mqtt:
        began = time.monotonic()
        for index in range(200):
            show(mqtt, monitors, "door", index=index, at=index / 30)
        assert time.monotonic() - began < 2
