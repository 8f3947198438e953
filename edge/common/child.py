"""Start code of ours in a separate Python process."""

import sys


def python_command(code: str, *arguments: str) -> list[str]:
    """The command that runs code, such as `from rws.cli import main; main()`, in a new Python process.

    It imports what this process imports. Unlike `python -m` and `python -c`, it never imports what lies in the working
    directory: a user's own folder `edge/` or `benchmarks/` there does not hide ours.
    """
    search = [path for path in sys.path if path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {search!r}\n{code}", *arguments]
