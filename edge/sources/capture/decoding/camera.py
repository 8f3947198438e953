"""Cameras and GStreamer pipelines, through OpenCV."""

import time
from collections.abc import Iterator

import numpy as np

from rws.edge.sources.capture.decoding.base import DecodedFrame, Decoder, credible, lost_frame
from rws.edge.sources.capture.decoding.checks import TOO_LARGE, UNDECODABLE
from rws.edge.sources.capture.protocol import CaptureSettings
from rws.errors import SourceError


class CameraDecoder(Decoder):
    """A camera, or a GStreamer pipeline (`… ! appsink`), through OpenCV."""

    def __init__(self, settings: CaptureSettings) -> None:
        import cv2

        self._cv2, self._max_pixels, target = cv2, settings.max_pixels, settings.target
        pipeline = isinstance(target, str) and " ! " in target
        self._capture = cv2.VideoCapture(target, cv2.CAP_GSTREAMER if pipeline else cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise SourceError(
                "cannot be opened; check with gst-launch-1.0 that it runs, and that this OpenCV has GStreamer"
                if pipeline
                else "cannot be opened; check that it is connected and that no other program uses it"
            )
        self.fps = credible(self._capture.get(cv2.CAP_PROP_FPS))

    def __iter__(self) -> Iterator[DecodedFrame]:
        while self._capture.grab():
            captured_at = time.monotonic()
            decoded, image = self._capture.retrieve()
            if decoded and image is not None and image.shape[0] * image.shape[1] > self._max_pixels:
                yield lost_frame(captured_at, TOO_LARGE)
            elif decoded and image is not None:
                rgb = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
                yield DecodedFrame(rgb, captured_at)
            else:
                yield lost_frame(captured_at, UNDECODABLE)
        raise SourceError("gives no more frames; check the cable")

    def close(self) -> None:
        """Release the camera."""
        self._capture.release()
