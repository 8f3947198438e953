"""The state of the cameras for an MQTT broker and Home Assistant; needs the extra `mqtt`."""

from rws.edge.common.extras import require

with require("mqtt"):
    import paho.mqtt.client  # noqa: F401

from rws.edge.mqtt.options import MqttOptions, mqtt_options
from rws.edge.mqtt.publisher import MqttPublisher

__all__ = ["MqttOptions", "MqttPublisher", "mqtt_options"]
