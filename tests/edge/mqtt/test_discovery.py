"""Announcements against the keys that Home Assistant takes (tests/data/homeassistant)."""

import json
import re
from pathlib import Path

import pytest

from rws.edge.mqtt import mqtt_options
from rws.edge.mqtt.discovery import ENTITIES, announcement, discovery_topics

DATA = json.loads((Path(__file__).parents[2] / "data" / "homeassistant" / "mqtt_keys.json").read_text())
OPTIONS = mqtt_options("mqtt://host/house/attic", {})


@pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: entity.key)
def test_home_assistant_knows_every_key(entity):
    found = announcement(OPTIONS, "door", entity, "detector")
    assert found.keys() <= set(DATA["every"]) | set(DATA[entity.kind])
    assert found["device"].keys() <= set(DATA["device"])
    assert found["origin"].keys() <= set(DATA["origin"])
    assert set(DATA["required"][entity.kind]) <= found.keys()
    assert found.get("device_class", "problem") in DATA["binary_sensor_device_class"]
    assert found.get("state_class", "measurement") in DATA["state_class"]
    assert found.get("entity_category", "diagnostic") in DATA["entity_category"]


def test_topics_and_identifiers_are_unique_and_valid():
    topics = [topic for camera in ("door", "yard") for topic, _ in discovery_topics(OPTIONS, camera)]
    assert len(topics) == len(set(topics)) == 2 * len(ENTITIES)
    for topic in topics:
        _, component, node, item, end = topic.split("/")
        assert component in ("sensor", "binary_sensor", "image")
        assert re.fullmatch(r"[A-Za-z0-9_-]+", node + item)
        assert end == "config"
    identifiers = {announcement(OPTIONS, c, e, "")["unique_id"] for c in ("door", "yard") for e in ENTITIES}
    assert len(identifiers) == 2 * len(ENTITIES)


def test_what_is_not_wanted_is_not_announced():
    assert not list(discovery_topics(mqtt_options("mqtt://host", {}, discovery=""), "door"))
    without = discovery_topics(mqtt_options("mqtt://host", {}, images=0), "door")
    assert "image" not in {entity.kind for _, entity in without}
