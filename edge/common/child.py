"""Start code of ours in a separate Python process."""

import sys


def python_command(code: str, *arguments: str) -> list[str]:
    """The command that runs code in a new Python process, which imports what this process imports.

    Unlike with `-m` and `-c`, a user's own `edge/` or `benchmarks/` in the working directory does not hide ours.
    """
    search = [path for path in sys.path if path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {search!r}\n{code}", *arguments]
