"""Frames on their way from a source to the loop: checked, and corrupted on purpose (`rws run --corrupt`)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

from rws.edge.bundle.manifest import Manifest
from rws.edge.common.extras import require
from rws.records import Frame

CORRUPT_SEED = 0  # for `--corrupt`; the noise of a frame depends on it and on the frame's number

log = logging.getLogger(__name__)


@dataclass
class SizeWarning:
    """Passes frames on, and warns at the first one that is larger than what the oracle was calibrated on."""

    manifest: Manifest
    warned: bool = False

    def __call__(self, frame: Frame) -> Frame:
        """Return the frame."""
        if not self.warned and (warning := self.manifest.size_warning(*frame.image.shape[:2])):
            self.warned = True
            log.warning("%s", warning)
        return frame


def corrupter(spec: str) -> Callable[[Frame], Frame]:
    """Return a function that corrupts a frame, at its own resolution, as TYPE:SEVERITY says."""
    with require("train"):
        # By its name, because this room imports nothing of the room that makes the corruptions.
        module = import_module("rws.training.corruptions.frames")
    change = module.corrupter(spec, seed=CORRUPT_SEED)
    return lambda frame: replace(frame, image=change(frame.image, frame.index), original=frame.image)
