"""Start code of ours in a separate Python process."""

import os
import re
import sys

# What a loader, Python, OpenCV, FFmpeg and GStreamer read. No token, no source, and no secret of another program.
_NEEDED = re.compile(
    r"PATH|HOME|USER|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|SSL_CERT_(?:FILE|DIR)|(?:http|https|no)_proxy|NO_PROXY|"
    r"DISPLAY|XAUTHORITY|WAYLAND_DISPLAY|DBUS_SESSION_BUS_ADDRESS|CUDA_VISIBLE_DEVICES|"
    r"(?:LC|LD|DYLD|XDG|GST|GENICAM|LIBCAMERA|PIPEWIRE|PULSE|OPENCV|OMP|OPENBLAS|LIBVA|VDPAU|QT)_\w+|PYTHON\w+"
)


def python_command(code: str, *arguments: str) -> list[str]:
    """Return the command for code in a new process that imports what this one does, whatever its working directory."""
    search = [path for path in sys.path if path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {search!r}\n{code}", *arguments]


def child_environment() -> dict[str, str]:
    """Return the part of this process's environment that a process needs which reads what comes from outside."""
    kept = {name: value for name, value in os.environ.items() if _NEEDED.fullmatch(name)}
    return kept | {"ORT_DISABLE_TELEMETRY": "1"}  # or ONNX Runtime reports its use to its maker
