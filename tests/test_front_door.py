"""`rws`: what it exports, and what importing it costs."""

import subprocess
import sys

import pytest

import rws
from rws.errors import UsageError, check_known


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_every_name_can_be_imported():
    names = run("from rws import *; print(*sorted(name for name in globals() if not name.startswith('__')))")
    assert names == sorted(rws.__all__)
    assert {*rws.__all__} <= {*dir(rws)}


def test_importing_it_imports_nothing_else():
    assert run("import rws, sys; print(*({'numpy', 'onnxruntime', 'cv2', 'typer'} & sys.modules.keys()))") == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        rws.Nothing


def test_an_unknown_name_among_choices_is_a_usage_error_with_a_suggestion():
    check_known("colour", ["red", "blue"], ("red", "blue"))
    with pytest.raises(UsageError, match=r"unknown colour 'bleu'; known: red, blue; did you mean 'blue'\?$"):
        check_known("colour", ["red", "bleu"], ("red", "blue"))
    with pytest.raises(UsageError, match=r"unknown colour 'x'; known: red, blue$"):
        check_known("colour", "x", {"red": 1, "blue": 2})
