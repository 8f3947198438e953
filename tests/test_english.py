"""Plain English: the phrases that a reader from the field stumbles over stand nowhere; docstrings start with a verb."""

from __future__ import annotations

import ast
import re
import subprocess
from bisect import bisect
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("rws/", "edge/", "oracle/", "training/", "benchmarks/", "examples/")
SUFFIXES = {".css", ".html", ".js", ".md", ".py", ".pyi", ".toml", ".yaml", ".yml"}
NAMES = ("Makefile", "Dockerfile", "rws.")
QUOTES = ("tests/test_english.py", "CHANGELOG.md", "benchmarks/results/")
"""What quotes old words: this table, the history, and recorded results with their commands."""
RECORDED = re.compile(r"<!-- (sources|clips) -->.*?<!-- /\1 -->", re.DOTALL)
"""Tables of a page that quote recorded commands, or what the drill recorded of video clips."""

THING = r"(?:line|frame|image|step|cell|class|type|row|record|signature|model|corruption|session|second|minute|seed)"
OF_PICTURES = (
    r"an?|the|each|every|no|of|these|those|its|your|own|clean|clear|corrupted|black|frozen|damaged|equal|whole|real|live|"
    r"newest|last|next|old|first|few|some|many|more|most|other|all|test|with|held-out|labelled|\d+"
)
METHOD = "strategy, method, engine, arm"
TABLE = [
    ("anew", r"\banew\b", "again; reopened, rebuilt, measured again"),
    ("for ever", r"\bfor ever\b", "indefinitely; until stopped"),
    ("sought", r"\b(?:sought|seeks|seeking)\b", "reconnecting; retrying"),
    ("at hand", r"\bat hand\b|\bto be had\b", "available"),
    ("the books", r"\bbooks\b", "frame accounting; counters"),
    ("of its own", r"\bof (?:its|their|his|one's) own\b", "a separate X; its own X"),
    (
        "takes X for Y",
        r"\b(?:takes|took|taken|taking) (?:[^ .,;]+ ){1,4}for (?:an?|the|one another|something|what)\b",
        "mistakes X for Y",
    ),
    ("what runs the model", r"\bwhat runs the model\b", "backend"),
    ("--way", r"--ways?\b|\bWAYS\b", "--strategy, --method; STRATEGIES, METHODS, ARMS"),
    ("the ways", r"(?i)\b(?:two|other|the|all|unknown|which|every|both) ways\b", METHOD),
    ("a way to change", r"(?i)\bways? (?:to|of|from) (?:chang|mak|belief|updat|patch|a signature|weights)", METHOD),
    (
        "the way is",
        r"\b(?:an?|each|every|no|the|slower|faster|weight's|signature's|frame's) way (?:is|was|that|gives|runs|got)\b",
        METHOD,
    ),
    ("in hand", r"\bin hand\b", "current; in progress"),
    ("what became of", r"\b(?:became|came|come) of\b", "outcome of"),
    ("frames that came", r"\b(?:frames?|images?|pictures?|packets?|results?|one) that (?:came|comes?)\b", "received"),
    ("so many", r"\bso many\b", "N; at most N"),
    ("left out: …", r"[;.,:(] left out[:;]|\bLeft out[:;]", "default: …"),
    ("once for each", r"\bonce for each\b|[;,] several times\b", "repeatable"),
    ("told", r"(?i)\btold\b", "perfect oracle; given, set, called with"),
    ("never patched", r"(?i)\bnever[ -]patched\b", "no patch"),
    ("rivals", r"(?i)\brivals?\b", "baselines"),
    ("never lies", r"\bnever (?:lies|dies|lags)\b", "the property: drops old frames, counted"),
    ("pictures", rf"(?i)\b(?:{OF_PICTURES}) pictures?\b", "image for a model's input; frame of a video; figure"),
    ("pictures of", r"\b[Pp]ictures? (?:without|with|that|of)\b", "image; frame; figure"),
    ("beside", r"(?i)\bbeside\b", "next to; compared with"),
    ("judge", r"(?i)\bjudg(?:e|es|ed|ing)\b", "evaluate, classify; Evaluator"),
    ("stranger, workshop", r"(?i)\bstrangers?\b|\bworkshop\b", "HeldOutOracle, evaluate_held_out; build"),
    ("Guard", r"\bGuard\b", "TokenAuth"),
    ("a line a frame", rf"\b(?:an?|one|two|\d+)(?: int64)? {THING}s? an? {THING}\b", "one line per frame"),
    (
        "where",
        r"(?i)\bwhere (?:there (?:is|are) (?:no|none|nothing|only)|(?:it|they|that|none|nothing) (?:is|are) "
        r"(?:absent|asked|cut|free|known|listed|missing|needed|not|possible|random|unavailable|unknown))\b",
        "if",
    ),
    (
        "is no X",
        r"(?<![Tt]here )\b(?:is|are|was|were) no (?:array|bundle|camera|class|convolution|corruption|distribution|file|"
        r"gap|image|list|model|numbers?|option|part|path|picture|stamp|stream|tensor|token|uint8|video)s?\b",
        "is not a X",
    ),
    ("again and again", r"\bagain and again\b", "repeatedly"),
    ("old commands", r"\brws build\b|\brws bench (?:ways|rivals)\b", "rws adopt, rws train; bench baselines"),
]
NOT_VERBS = """
A An All Any As At Back By Each Every For From How If In It Its Names Nothing Of On One Only Or Some That The There
These This Those To Types What When Where Which Who Whether Whole With
"""


@cache
def texts() -> dict[str, str]:
    """The text files that are tracked, or about to be, by name."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0")[:-1] if not name.startswith(QUOTES)]
    chosen = [path for path in paths if path.suffix in SUFFIXES or path.name.startswith(NAMES)]
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in chosen if path.is_file()}
    return {name: RECORDED.sub(lambda match: "\n" * match[0].count("\n"), text) for name, text in found.items()}


@cache
def flat(text: str) -> tuple[str, list[int]]:
    """A text in one line, without comment marks and underscores, and where in it each line of the text starts."""
    lines = [" ".join(re.sub(r"^\s*(?:#+|//|\*)", "", line).replace("_", " ").split()) for line in text.split("\n")]
    return " ".join(lines), [0, *accumulate(len(line) + 1 for line in lines)]


def findings(pattern: str) -> Iterator[str]:
    for name, text in texts().items():
        joined, starts = flat(text)
        for match in re.finditer(pattern, joined):
            yield f"{name}:{bisect(starts, match.start())}: {match.group()}"


@pytest.mark.parametrize(("pattern", "instead"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_phrase_stands_nowhere(pattern, instead):
    found = list(findings(pattern))
    assert not found, f"write instead: {instead}\n" + "\n".join(found)


def test_phrases_are_found_across_lines_and_in_names():
    joined, starts = flat("One line.\n    # no GPU was at\n    # hand\ndef test_it_is_told_twice():")
    assert joined == "One line. no GPU was at hand def test it is told twice():"
    assert bisect(starts, joined.index("at hand")) == 2
    assert bisect(starts, joined.index("told")) == 4


def test_docstrings_of_functions_start_with_a_verb():
    found, not_verbs = [], set(NOT_VERBS.split())
    for name, text in texts().items():
        if not (name.startswith(ROOMS) and name.endswith(".py")):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            first = (ast.get_docstring(node) or "Return").split()[0].strip(".,:;")
            kinds = [ast.unparse(decorator) for decorator in node.decorator_list]
            if first in not_verbs and not any(kind.endswith(("property", ".setter")) for kind in kinds):
                found.append(f"{name}:{node.lineno}: {node.name}: {first} …")
    assert not found, "\n".join(found)
