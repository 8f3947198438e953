"""A run of all cameras that publishes to a real MQTT broker, which is killed and comes back."""

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # types-psutil is no dependency of ours
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from rws.benchmarks.cameras.measure import Load, films, served, started
from rws.benchmarks.common.tables import Record
from rws.edge.common.child import python_command
from rws.edge.faults.servers import free_port
from rws.errors import RwsError

TOPIC = "bench"


def measure_broker(load: Load, say: Callable[[str], None]) -> Record:
    """Run all cameras for `load.seconds`, a quarter of which the broker is away, and count its messages.

    RwsError if mosquitto is not installed.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        raise RwsError("mosquitto is not installed; `make system` installs it")
    quarter, memory = load.seconds / 4, dict[str, float]()
    with ExitStack() as stack:
        folder, out = stack.enter_context(films()), Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls, port = stack.enter_context(served(folder, load.fps, "none")), free_port()
        (out / "broker.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        broker = subprocess.Popen([program, "-c", str(out / "broker.conf")], stderr=subprocess.DEVNULL)
        stack.callback(broker.kill)
        tables = [f'[camera.c{place}]\nsource = "{url}"\n' for place, url in enumerate(urls)]
        (out / "run.toml").write_text("".join(tables))
        options = ["--config", str(out / "run.toml"), "--json", str(out / "s.json"), "--bundle", load.bundle]
        command = ["run", *options, "--threads", "1", "--mqtt", f"mqtt://127.0.0.1:{port}/{TOPIC}"]
        run = stack.enter_context(started(python_command("from rws.cli import main; main()", *command), out / "log"))
        for when in ("after_a_quarter", "after_the_outage", "at_the_end"):
            if when == "after_the_outage":
                broker.kill()
                broker.wait()
            _wait(quarter * (2 if when == "at_the_end" else 1), run)
            memory[when] = _memory(run)
            say(f"{when}: {memory[when]} MB")
            if when == "after_the_outage":
                broker = subprocess.Popen([program, "-c", str(out / "broker.conf")], stderr=subprocess.DEVNULL)
                stack.callback(broker.kill)
        with _states(port) as states:
            _wait(12.0, run)
        run.terminate()
        if run.wait(timeout=60):
            raise RwsError(f"rws run failed: {(out / 'log').read_text()[-500:]}")
        summary = json.loads((out / "s.json").read_text())
    sink = summary["sinks"]["mqtt"]
    counts = {key: sink[key] for key in ("accepted", "written", "dropped", "waiting", "writing", "failures")}
    left = sink["accepted"] - sink["written"] - sink["dropped"] - sink["waiting"] - sink["writing"]
    return {
        "seconds": load.seconds,
        "away_seconds": quarter,
        **counts,
        "unaccounted": left,
        "memory_mb": memory,
        "cameras_online": sum(state["online"] == "on" for state in states.values()),
        "frames": sum(camera["frames"] for camera in summary["cameras"]),
        "dropped_frames": sum(camera["dropped"] for camera in summary["cameras"]),
    }


def _wait(seconds: float, run: psutil.Popen) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if run.poll() is not None:
            raise RwsError(f"rws run has ended with {run.returncode}")
        time.sleep(0.2)


def _memory(run: psutil.Popen) -> float:
    pss = sum(process.memory_full_info().pss for process in (run, *run.children(recursive=True)))
    return round(float(pss) / 1e6, 1)


@contextmanager
def _states(port: int) -> Iterator[dict[str, Record]]:
    """Collect the states that the broker has, and those that come."""
    found, lock = dict[str, Record](), threading.Lock()

    def take(client: Client, data: object, message: MQTTMessage) -> None:
        with lock, suppress(ValueError):
            found[message.topic] = json.loads(message.payload)

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe(f"{TOPIC}/+/state", qos=1)
    client.on_message = take
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        yield found
    finally:
        client.disconnect()
        client.loop_stop()
