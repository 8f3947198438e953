import json
import os

import pytest

from rws.errors import FormatError
from rws.training.data.names import fitted, names_in_metadata, read_names
from support.tiny import network

CAT_DOG = ["cat", "dog"]


def written(folder, name, text) -> list[str]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_names(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.txt", "cat\ndog\n"),
        ("bom.txt", "\ufeffcat\r\ndog\r\n\r\n"),
        ("list.json", '["cat", "dog"]'),
        ("object.json", '{"note": "x", "names": ["cat", "dog"]}'),
        ("id2label.json", '{"model_type": "vit", "id2label": {"1": "dog", "0": "cat"}}'),
        ("label2id.json", '{"dog": 1, "cat": 0}'),
        ("imagenet.json", '{"0": ["n02123045", "cat"], "1": ["n02084071", "dog"]}'),
        ("dict.txt", "{0: 'cat',\n 1: 'dog'}"),
    ],
)
def test_names_from_what_people_have(name, text, tmp_path):
    assert written(tmp_path, name, text) == CAT_DOG


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "\n  0: cat\n  1: dog"])
def test_names_of_a_data_yaml(names, tmp_path):
    pytest.importorskip("yaml")
    assert written(tmp_path, "data.yaml", f"path: x\nnc: 2\nnames: {names}\n") == CAT_DOG


def test_a_blank_line_does_not_shift_the_others(tmp_path):
    names = written(tmp_path, "a.txt", "cat\n\ndog\n\n")
    assert fitted(names, 3) == ["cat", "class 1", "dog"]
    assert fitted(names, 2) == CAT_DOG
    assert fitted(names, 4) is None


def test_two_classes_of_one_name_stay_two(tmp_path):
    assert written(tmp_path, "a.txt", "crane\ncat\ncrane\n") == ["crane", "cat", "crane"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "{}", "expected a list"),
        ("b.json", '{"0": 1.5, "x": 2}', "expected a list"),
        ("c.json", '{"0": "a", "999999999": "b"}', "expected a list"),
        ("d.yaml", "a: [", "not YAML"),
        ("e.yaml", "!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_what_holds_no_names_is_refused_in_a_line(name, text, message, tmp_path):
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    with pytest.raises(FormatError, match=message) as caught:
        written(tmp_path, name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{0: 'cat', 1: 'dog'}", json.dumps(CAT_DOG)])
def test_names_that_an_exporter_wrote_into_the_model(text):
    model = network(1, 2, seed=0)
    assert names_in_metadata(model) is None
    model.metadata_props.add(key="names", value=text)
    assert names_in_metadata(model) == CAT_DOG
    model.metadata_props[0].value = "__import__('os')"
    assert names_in_metadata(model) is None


def test_a_file_of_names_from_outside_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "digits.json").write_text("[" + "9" * 5000 + "]")
    (tmp_path / "cut.json").write_text('["cat", "do')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    found = {
        "latin.txt": "UTF-8",
        "pipe.txt": "cannot be read .not a regular file",
        "none.txt": "cannot be read .No such file",
        "deep.json": "not JSON .nested more than",
        "digits.json": "not JSON .a number of 5000 characters",
        "cut.json": "not JSON",
    }
    for name, message in found.items():
        with pytest.raises(FormatError, match=message):
            read_names(tmp_path / name)
