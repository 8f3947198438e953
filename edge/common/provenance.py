"""What every result carries: the command, the commit, the machine and the versions that made it."""

import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rws.edge.common.files import write_text
from rws.records import utc
from rws.text import HIDDEN, printable, shown_address

PACKAGES = ("rws-edge", "torch", "onnxruntime", "numpy", "opencv-python")
_VARIABLES = {
    **dict.fromkeys(("--json", "--jsonl", "--csv", "--out", "--save"), "$OUT"),
    **dict.fromkeys(("--work", "--cache", "--baselines"), "$WORK"),
    "--bundle": "$BUNDLE",
}
# Options whose values may be published; those of others, of other programs' commands too, are hidden.
KNOWN_SAFE = re.compile(
    r"-[hqv]|--(?:"
    r"accept|backend|baselines|batch|bgr|bits|broker|bundle|cache|cell|classes|clear|clip|column|config|corrupt|corruption|count|csv|dark|data|device|"
    r"dry-run|duration|epochs|events|every|every-frame|explain|fail-if|file|fit|fps|frames|head|help|hostile|images|independent|init|int8|job|json|jsonl|keep|label|"
    r"labels|lasting|latest|layers|leave-clean|limit|loop|max-fps|max-pixels|mean|method|min-severity|model|most|mqtt-ca|mqtt-discovery|mqtt-images|name|names|no-resume|noise|on|only|only-bad|onto|oracle-every|"
    r"other-classes|out|output|own-oracle|"
    r"pairs|per|plot|poll|pretrained|projection|protocol|provider|python|quick|quiet|rain|recipe|recipes|reference|remeasure|repeats|results|"
    r"resume|retries|robust|rounds|rtsp-transport|save|scale|seconds|seed|severity|show|size|soak|source|stall|status|std|strategy|"
    r"stream|streams|target|task|test|threads|timings|titles|transfer|validation-limit|verbose|version|video|watch|work|workers"
    r")"
)
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")
# A path that a device of the same kind would not have; /dev/video0 it would have.
_PATH = re.compile(r"(?!/dev/\w+$)(?:file://|~|/|\.\.(?:/|$)).*", re.DOTALL)
# A part of an argument that may be a path, as in a GStreamer pipeline; a URL keeps its scheme.
_PART = re.compile(r"(?:\w[\w+.-]*://)?[^\s=:,;'\"()]+")
_GIT_SECONDS = 5.0


def provenance(**details: object) -> dict[str, object]:
    """Return command line, commit (short hash, `+` if the code differs), machine, versions, and details as given."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": portable_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "machine": {"processor": _processor(), "system": platform.system()},
        "versions": versions,
        **details,
    }


def portable_command(arguments: Sequence[str]) -> str:
    """Join a command line for a record: no value but of `KNOWN_SAFE` options, no path of this machine, no secret."""
    words, before, hidden = list[str](), "", False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        variable = _VARIABLES.get(before, "$DATA")
        before = ""
        if hidden and not KNOWN_SAFE.fullmatch(argument):
            words.append(HIDDEN)
            hidden = False
        elif KNOWN_SAFE.fullmatch(name):
            words.append(f"{name}={_published(value, _VARIABLES.get(name, '$DATA'))}" if equals else name)
            before, hidden = name, False
        elif _OPTION.fullmatch(name):
            words.append(f"{name}={HIDDEN}" if equals else name)
            hidden = not equals
        else:
            words.append(_published(argument, variable))
    return " ".join(words)


def _published(word: str, variable: str) -> str:
    if " ! " in word:
        return "$PIPELINE"
    if "://" in word and not _is_foreign(word):
        return shown_address(word)
    if re.match(r"[^/]*:.*@", word, re.DOTALL):
        return HIDDEN  # credentials of a URL without its scheme
    return printable(portable_path(word, variable))


def portable_path(text: str, variable: str = "$DATA") -> str:
    """Replace foreign paths in a text by a variable and what follows the folder of its name, or their last part."""
    name, equals, value = text.partition("=")
    if equals and "/" not in name and _is_foreign(value):
        return f"{name}={_placeholder(value, variable)}"
    if _is_foreign(text):
        return _placeholder(text, variable)
    return _PART.sub(lambda part: _placeholder(part[0], variable) if _is_foreign(part[0]) else part[0], text)


def _is_foreign(path: str) -> bool:
    return _PATH.fullmatch(path) is not None or ("://" not in path and ".." in path.split("/"))


def _placeholder(path: str, variable: str) -> str:
    """What follows the folder of the variable's name, or the last part."""
    parts = [part for part in path.split("/") if part]
    own = variable[1:].lower()
    kept = parts[len(parts) - parts[::-1].index(own) :] if own in parts else parts[-1:]
    if any(part.startswith(("~", "..")) or part == "file:" for part in kept):
        kept = []
    return "/".join([variable, *kept])


@cache
def commit() -> str | None:
    """Return the short hash of the checkout, `+` if its code differs; None if the package is installed."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)

    try:
        if git("ls-files", "--error-unmatch", here.name).returncode != 0:
            return None  # Installed, perhaps within a checkout of something else.
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ":/*.py", ":/*.toml").returncode != 0
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"{head.stdout.strip()}{'+' if changed else ''}" if head.returncode == 0 else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*\S)", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def write_json(path: Path, schema: str, content: Mapping[str, Any]) -> None:
    """Write a record, atomically, or to stdout for `-`; `schema` (`name/version`) and the time come first."""
    content = {"schema": schema, "written_at": utc(time.time()), **content}
    write_text(path, _formatted(content) + "\n")


def _formatted(content: Any, indent: str = "") -> str:
    """JSON with a line for each entry of the outermost objects, and of lists of objects."""
    inner = indent + " "
    if isinstance(content, dict) and content and not indent:
        entries = [f"{json.dumps(key)}: {_formatted(value, inner)}" for key, value in content.items()]
        return "{\n" + ",\n".join(inner + entry for entry in entries) + "\n}"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return "[\n" + ",\n".join(inner + json.dumps(entry, allow_nan=False) for entry in content) + f"\n{indent}]"
    return json.dumps(content, allow_nan=False)


def installed_version() -> str:
    """Return the version of this package; "" if it is a checkout that was not installed."""
    with suppress(PackageNotFoundError):
        return version("rws-edge")
    return ""
