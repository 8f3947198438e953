"""Start code of ours in a separate Python process."""

import sys


def python_command(code: str, *arguments: str) -> list[str]:
    """Return the command for code in a new process that imports what this one does, whatever its working directory."""
    search = [path for path in sys.path if path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {search!r}\n{code}", *arguments]
