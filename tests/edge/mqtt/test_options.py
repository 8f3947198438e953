import pytest

from rws.edge.mqtt import mqtt_options
from rws.errors import UsageError


def test_an_address_names_broker_user_and_topic():
    found = mqtt_options("mqtts://me:s%40cret@host:99/house/attic", {})
    assert (found.host, found.port, found.tls) == ("host", 99, True)
    assert (found.user, found.password, found.topic, found.node) == ("me", "s@cret", "house/attic", "house_attic")
    assert "cret" not in repr(found) + found.name
    plain = mqtt_options("mqtt://host", {"RWS_MQTT_PASSWORD": "x"})
    assert (plain.port, plain.topic, plain.password, plain.discovery) == (1883, "rws", "x", "homeassistant")
    assert mqtt_options("mqtts://host", {}).port == 8883


@pytest.mark.parametrize(
    "url",
    [
        "host",
        "http://host",
        "mqtt://",
        "mqtt://h:port",
        "mqtt://h:99999",
        "mqtt://h/a b",
        "mqtt://h/#",
        "mqtt://h/+/x",
        "mqtt://user:secret@h/?x=1",
        "mqtt://h/" + "a/" * 9,
    ],
)
def test_other_addresses_are_refused_without_their_secrets(url):
    with pytest.raises(UsageError) as refused:
        mqtt_options(url, {})
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_certificates_must_be_a_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        mqtt_options("mqtts://host", {}, ca=tmp_path / "ca.pem")
    with pytest.raises(UsageError, match="has other characters"):
        mqtt_options("mqtt://host", {}, discovery="home/+")
