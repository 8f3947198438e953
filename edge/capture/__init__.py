"""Capture in a process of its own, which can be killed when a driver or a network blocks for ever."""

from rws.edge.capture.process import CaptureProcess, CaptureSettings
from rws.edge.capture.source import CapturedSource

__all__ = ["CaptureProcess", "CaptureSettings", "CapturedSource"]
