"""Sources whose time is not that of their arrival: recordings over HTTP, variable frame rates, live HLS, pauses."""

import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from rws.edge.faults.frames import encode_jpeg, encode_video, scene, stamped, without_rate
from rws.edge.faults.harness import Drill, Seen, Until, fault, reached
from rws.edge.faults.servers import FileServer, MjpegServer
from rws.edge.sinks.video import VideoSink
from rws.edge.sources.base import Source
from rws.edge.sources.open import open_source

RATE, PAUSE = 25, 6.0


def _paused(number: int) -> float:
    return number / RATE + (PAUSE if number >= RATE else 0.0)


def write_segments(folder: Path, count: int, rate: int = RATE) -> list[str]:
    """Write TS files of one second each whose time stamps all begin again; return the lines of an HLS playlist."""
    for number in range(count):
        encode_video(folder / f"{number}.ts", rate, lambda frame: 1.4 + frame / rate, options={"bf": "0"})
    return [f"#EXT-X-DISCONTINUITY\n#EXTINF:1.0,\n{number}.ts\n" for number in range(count)]


def write_playlist(path: Path, segments: list[str], first: int = 0, ended: bool = False) -> None:
    """Write an HLS playlist of segments, the first of which bears that number."""
    head = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:{first}\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(head + "".join(segments) + ("#EXT-X-ENDLIST\n" if ended else ""))
    temporary.replace(path)


def _save(drill: Drill, spec: str | Path, until: Until = lambda seen: False) -> tuple[list[Seen], Source, float]:
    """Play and save a source; give the results, the closed source, and the length of the saved file in seconds.

    The length of a live source is that from its first frame to its last one.
    """
    path, source = drill.folder / "saved.mp4", open_source(spec)
    with VideoSink(path, source=source) as sink:
        seen = drill.play(source, until, sinks=[sink])
    with av.open(str(path)) as saved:
        times = [frame.time or 0.0 for frame in saved.decode(video=0)]
        return seen, source, times[-1] - times[0] if source.live else (saved.duration or 0) / av.time_base


@fault(
    "the time of recordings",
    "A saved file lasts as long as its source: constant and variable rate, HTTP, HLS, WebM.",
    slow=True,
)
def _recordings(drill: Drill) -> None:
    folder = drill.folder
    encode_video(folder / "constant.mp4", 2 * RATE, container_options={"movflags": "+faststart"})
    encode_video(folder / "variable.mp4", 2 * RATE, _paused)
    encode_video(folder / "browser.webm", 2 * RATE, _paused, codec="libvpx", container_options={"live": "1"})
    (folder / "browser.webm").write_bytes(without_rate((folder / "browser.webm").read_bytes()))
    write_playlist(folder / "recorded.m3u8", write_segments(folder, 2), ended=True)
    with FileServer(folder) as server:
        for kind, spec, length in (
            ("MP4 over HTTP", f"{server.url}constant.mp4", 2.0),
            ("HLS recording", f"{server.url}recorded.m3u8", 2.0),
            ("variable frame rate", folder / "variable.mp4", 2.0 + PAUSE),
            ("browser WebM", folder / "browser.webm", 2.0 + PAUSE),
            ("browser WebM over HTTP", f"{server.url}browser.webm", 2.0 + PAUSE),
        ):
            seen, source, saved = _save(drill, spec)
            drill.say(f"{kind}: {length:.2f} s, saved {saved:.2f} s, {len(seen)} frames")
            drill.check(abs(saved - length) <= 1 / RATE + 1e-3, f"{kind}: it lasts as long as its source")
            drill.check(len(seen) == 2 * RATE and not source.live, f"{kind}: each frame has a result")


@fault("the time of a live camera with a pause", "The pause is in the saved file, as long as it was.", slow=True)
def _live_pause(drill: Drill) -> None:
    pictures = [encode_jpeg(stamped(scene(480, 640, seed), seed)) for seed in range(8)]
    with MjpegServer(lambda number: None if 30 <= number < 90 else pictures[number % 8]) as server:
        seen, _, saved = _save(drill, server.url, lambda seen: len(seen) >= 50)
    length = seen[-1].result.captured_at - seen[0].result.captured_at
    drill.say(f"{length:.2f} s from the first to the last frame, saved {saved:.2f} s")
    drill.check(length > 2.0, "the camera pauses for 2 s")
    drill.check(abs(saved - length) <= 1e-3, "it lasts as long as the frames were apart")


@fault("the time of live HLS", "Each frame of each segment has a result, evenly spaced, and its age counts the wait.")
def _live_hls(drill: Drill) -> None:
    folder = drill.folder
    segments = write_segments(folder, 8, rate=10)
    started = time.monotonic()

    def publish(seen: list[Seen]) -> bool:
        first = int(time.monotonic() - started)
        write_playlist(folder / "live.m3u8", [segments[number % 8] for number in range(first, first + 3)], first)
        return reached(60)(seen)

    publish([])
    with FileServer(folder) as server:
        seen, source, saved = _save(drill, f"{server.url}live.m3u8", publish)
    gaps = np.diff([one.at for one in seen])
    age = float(np.median([one.result.age_ms for one in seen]))
    together = sum(b.result.captured_at - a.result.captured_at < 0.02 for a, b in pairwise(seen))
    drill.say(f"{len(seen)} results, {source.dropped} dropped, {together} arrived together with the one before")
    drill.say(f"longest gap between results {gaps.max():.2f} s, age p50 {age:.0f} ms, saved {saved:.2f} s of 5.90 s")
    drill.check(source.live and together > len(seen) / 2, "its frames arrive in bursts")
    drill.check(len(seen) >= 0.9 * (len(seen) + source.dropped), "at least 90 % of its frames have a result")
    drill.check(float(np.quantile(gaps, 0.9)) < 0.3, "results come one after the other")
    drill.check(age > 100, "the age of a frame counts its wait")


CASES = [_recordings, _live_pause, _live_hls]
