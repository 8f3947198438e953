"""What a hostile soak does to a run while it goes on, and what the run has counted of it."""

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rws.edge.common.closing import Closing
from rws.edge.faults.bundles import BAD, place
from rws.edge.faults.peers import NEVER_READS, HostilePeers, Page

BURSTS, BURST = 40, 25  # of connections
SETTLE, LONGEST_TEST = 2.0, 300.0  # seconds until a change is seen for sure, and until it is refused or accepted


@dataclass(frozen=True)
class Attacked:
    """What was done to a run, and next to it what it has counted."""

    bad_bundles: tuple[str, ...]  # in this order
    bundles_refused: int
    good_bundles: int
    bundles_swapped: int
    connections: Mapping[str, int]  # by what they did
    refused: Mapping[str, int]  # requests and connections, by reason
    connections_at_end: int

    def promises(self, sinks: Mapping[str, Any]) -> dict[str, bool]:
        """Return whether each promise was kept, given the outputs of the run's summary."""
        made, refused = sum(self.connections.values()), sum(self.refused.values())
        full, healthy = sinks["jsonl"], sinks["csv"]
        guesses = self.refused.get("wrong_token", 0) + self.refused.get("guessing", 0)
        return {
            "each bad bundle is refused and counted": self.bundles_refused == len(self.bad_bundles) == len(BAD),
            "the good bundle takes over": self.bundles_swapped == self.good_bundles == 1,
            "each refused connection is counted once": made - self.connections[NEVER_READS] <= refused <= made,
            "each wrong token is counted": guesses == self.connections["wrong token"],
            "no hostile connection stays open": self.connections_at_end <= 4,
            "each failed write is counted": full["failures"] > 0
            and full["failed"] + full["dropped"] == full["accepted"],
            "the other output loses nothing": healthy["written"] == healthy["accepted"] and healthy["failures"] == 0,
        }


class Adversary(Closing):
    """Attacks a run for N seconds: connections in bursts, and bundles in the folder that it watches."""

    def __init__(self, page: Page, seconds: float, bundle: Path, watched: Path) -> None:
        self._page, self._seconds, self._bundle, self._watched = page, seconds, bundle, watched
        self._stop = threading.Event()
        self._placed: list[str] = []
        self._good = 0
        self._peers = HostilePeers(page.port, page.token)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._connect, self._place)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._peers.close()

    def end(self) -> Attacked:
        """Stop, and ask the run what it has counted."""
        self.close()
        time.sleep(SETTLE)
        refused, still_open = self._page.refused()
        events = self._page.events()
        return Attacked(
            bad_bundles=tuple(self._placed),
            bundles_refused=events.get("bundle_refused", 0),
            good_bundles=self._good,
            bundles_swapped=events.get("bundle_swapped", 0),
            connections=dict(self._peers.made),
            refused=dict(refused),
            connections_at_end=still_open,
        )

    def _connect(self) -> None:
        for _ in range(BURSTS):
            self._peers.attack(BURST)
            for _ in range(10):
                self._peers.drip()
                if self._stop.wait(self._seconds / (BURSTS + 2) / 10):
                    return
            self._peers.close()

    def _place(self) -> None:
        step = 0.85 * self._seconds / (len(BAD) + 1)
        started = time.monotonic()
        for number, (name, damage) in enumerate(BAD.items(), 1):
            if self._stop.wait(max(0.0, started + number * step - time.monotonic())):
                return
            self._placed.append(name)
            place(self._bundle, self._watched, name, damage)
            self._wait_for("bundle_refused", number)
        place(self._bundle, self._watched, "another")
        self._good = 1
        self._wait_for("bundle_swapped", 1)

    def _wait_for(self, event: str, count: int) -> None:
        deadline = time.monotonic() + LONGEST_TEST
        while time.monotonic() < deadline and not self._stop.wait(0.5):
            with contextlib.suppress(OSError):
                if self._page.events().get(event, 0) >= count:
                    return
