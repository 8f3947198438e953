"""What Home Assistant learns of each camera: its MQTT discovery messages, one for each entity.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rws.edge.common.provenance import installed_version
from rws.edge.mqtt.options import MqttOptions


@dataclass(frozen=True)
class Entity:
    """An entity of a camera: its value is a key of the camera's state."""

    kind: str  # `sensor`, `binary_sensor` or `image`
    key: str
    name: str
    more: Mapping[str, str | int] = field(default_factory=dict)


ENTITIES = (
    Entity("sensor", "problem", "Picture problem", {"icon": "mdi:weather-fog"}),
    Entity("sensor", "severity", "Severity", {"state_class": "measurement", "suggested_display_precision": 1}),
    Entity("sensor", "health", "Picture health", {"state_class": "measurement", "unit_of_measurement": "%"}),
    Entity("sensor", "patch", "Patch", {"icon": "mdi:bandage", "entity_category": "diagnostic"}),
    Entity("sensor", "label", "Result"),
    Entity(
        "sensor",
        "fps",
        "Frames per second",
        {"state_class": "measurement", "unit_of_measurement": "fps", "entity_category": "diagnostic"},
    ),
    Entity("sensor", "dropped", "Dropped", {"state_class": "total_increasing", "entity_category": "diagnostic"}),
    Entity("sensor", "rejected", "Rejected", {"state_class": "total_increasing", "entity_category": "diagnostic"}),
    Entity("binary_sensor", "degraded", "Degraded", {"device_class": "problem"}),
    Entity("binary_sensor", "online", "Online", {"device_class": "connectivity", "entity_category": "diagnostic"}),
    Entity("image", "image", "Newest frame", {"content_type": "image/jpeg"}),
)


def topic_of(options: MqttOptions, camera: str, what: str) -> str:
    """Return a topic of a camera: `state`, `image` or `event`."""
    return f"{options.topic}/{camera}/{what}"


def availability_topic(options: MqttOptions) -> str:
    """Return the topic that says `online` or `offline` of the whole run."""
    return f"{options.topic}/status"


def discovery_topics(options: MqttOptions, camera: str) -> Iterator[tuple[str, Entity]]:
    """Yield the topic of each entity's announcement; an empty message there takes the entity away."""
    if options.discovery:
        for entity in ENTITIES:
            if entity.kind != "image" or options.images:
                yield f"{options.discovery}/{entity.kind}/{options.node}_{camera}/{entity.key}/config", entity


def announcement(options: MqttOptions, camera: str, entity: Entity, bundle: str) -> dict[str, object]:
    """Return the announcement of an entity, in plain types."""
    state = topic_of(options, camera, "state")
    value: dict[str, object] = {"state_topic": state, "value_template": f"{{{{ value_json.{entity.key} }}}}"}
    if entity.kind == "binary_sensor":
        value |= {"payload_on": "on", "payload_off": "off"}
    if entity.kind == "image":
        value = {"image_topic": topic_of(options, camera, "image")}
    return {
        "name": entity.name,
        "unique_id": f"{options.node}_{camera}_{entity.key}",
        **value,
        **entity.more,
        "availability_topic": availability_topic(options),
        "device": {
            "identifiers": [f"{options.node}_{camera}"],
            "name": f"{camera} ({options.topic})",
            "manufacturer": "rws-edge",
            "model": bundle,
            "sw_version": installed_version(),
        },
        "origin": {"name": "rws-edge", "sw_version": installed_version()},
    }
