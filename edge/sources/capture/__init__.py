"""Capture in a process of its own, which can be killed when a driver or a network blocks for ever."""

from rws.edge.sources.capture.process import CaptureProcess, CaptureSettings
from rws.edge.sources.capture.source import CapturedSource

__all__ = ["CaptureProcess", "CaptureSettings", "CapturedSource"]
