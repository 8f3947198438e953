"""Cameras that give one image per request, polled."""

import time
from collections.abc import Iterator

from rws.edge.sources.capture.decoding.base import DecodedFrame, Decoder, lost_frame
from rws.edge.sources.capture.decoding.checks import REPEATED, UNDECODABLE
from rws.edge.sources.capture.decoding.evidence.encoded import encoded_flaw
from rws.edge.sources.capture.decoding.opening import why
from rws.edge.sources.capture.decoding.still import decode_image
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.errors import SourceError

LARGEST_IMAGE = 2**25  # bytes


class SnapshotDecoder(Decoder):
    """A camera that gives one image per request, asked every `settings.poll` seconds.

    An answer that is the same, byte for byte, as the one before is `repeated`: it is no new image, and no sign of a
    fault, because many cameras renew theirs slowly. A request that takes longer than `timeout` seconds has failed.
    """

    tells_damage = True

    def __init__(self, settings: CaptureSettings, timeout: float) -> None:
        self._address, self._poll, self._timeout = str(settings.target), settings.poll, timeout
        self._max_pixels = settings.max_pixels
        self.fps = 1 / settings.poll

    def __iter__(self) -> Iterator[DecodedFrame]:
        before = b""
        due = time.monotonic()
        while True:
            data = self._fetch()
            arrived = time.monotonic()
            yield lost_frame(arrived, REPEATED) if data == before else self._decode(data, arrived)
            before = data
            due = max(due + self._poll, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def close(self) -> None:
        """Do nothing: each request has its own connection."""

    def _decode(self, data: bytes, arrived: float) -> DecodedFrame:
        if flaw := encoded_flaw(data, self._max_pixels):
            return lost_frame(arrived, flaw)
        try:
            return DecodedFrame(decode_image(data)[0], arrived)
        except SourceError:
            return lost_frame(arrived, UNDECODABLE)

    def _fetch(self) -> bytes:
        """Return one answer. FFmpeg fetches it, as it does streams: the same passwords, proxies and redirections."""
        import av

        data, began = bytearray(), time.monotonic()
        limits = (self._timeout, self._timeout)
        try:
            with av.open(self._address, format="data", options={"probesize": "32"}, timeout=limits) as container:
                for packet in container.demux():
                    data += bytes(packet)
                    if len(data) > LARGEST_IMAGE:
                        raise SourceError(f"sends more than {LARGEST_IMAGE >> 20} MiB for one image")
                    if time.monotonic() - began > self._timeout:
                        raise SourceError(f"sends no whole image within {self._timeout:g} s")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SourceError(why(error, self._timeout)) from error
        return bytes(data)
