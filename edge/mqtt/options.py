"""Where to publish, from the options of `rws run`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rws.errors import UsageError
from rws.text import printable, shown_address

TOPIC = "rws"
DISCOVERY = "homeassistant"
PORTS = {"mqtt": 1883, "mqtts": 8883}
_TOPIC = re.compile(r"[A-Za-z0-9_-]{1,64}(?:/[A-Za-z0-9_-]{1,64}){0,3}")


@dataclass(frozen=True)
class MqttOptions:
    """A broker, and what it gets.

    `topic`: what all topics begin with; two devices need two. `ca`: certificates that may have signed the broker's;
    None: those of the system. `discovery`: Home Assistant's prefix; "" announces nothing. `images`: seconds from one
    image of a camera to the next; 0 sends none.
    """

    host: str
    port: int
    tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)
    topic: str = TOPIC
    ca: Path | None = None
    discovery: str = DISCOVERY
    images: float = 10.0

    @property
    def name(self) -> str:
        """The broker, for people: without user and password."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    @property
    def node(self) -> str:
        """What Home Assistant calls this device in its identifiers."""
        return self.topic.replace("/", "_")


def mqtt_options(
    url: str, environ: Mapping[str, str], *, ca: Path | None = None, discovery: str = DISCOVERY, images: float = 10.0
) -> MqttOptions:
    """Return what `mqtt://user:password@host:port/topic` (or `mqtts:`) names; UsageError if it names nothing.

    The password may also be in the environment, as RWS_MQTT_PASSWORD.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(
            f"{shown_address(url)}: is no address of a broker; percent-encode what its user and password contain"
        ) from error
    if "@" in parts.path:
        raise UsageError("the address of the broker: percent-encode what its user and password contain")
    topic = parts.path.strip("/") or TOPIC
    if parts.scheme not in PORTS or not parts.hostname or {"?", "#"} & set(url):
        expected = "mqtt://HOST, or mqtts:// for TLS, with a user, port and topic: mqtt://user@host:1883/rws"
        raise UsageError(f"{shown_address(url)}: is no address of a broker; expected {expected}")
    for what in (topic, *([discovery] if discovery else [])):
        if not _TOPIC.fullmatch(what):
            raise UsageError(f"the topic {printable(what[:80])!r} has other characters than letters, digits, - _ and /")
    if ca is not None and not ca.is_file():
        raise UsageError(f"{ca}: no such file; expected certificates in PEM format")
    return MqttOptions(
        host=parts.hostname,
        port=port or PORTS[parts.scheme],
        tls=parts.scheme == "mqtts",
        user=unquote(parts.username or ""),
        password=unquote(parts.password or "") or environ.get("RWS_MQTT_PASSWORD", ""),
        topic=topic,
        ca=ca,
        discovery=discovery,
        images=images,
    )
