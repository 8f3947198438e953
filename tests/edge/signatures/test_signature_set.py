import contextlib
import json
import os

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from rws.edge.signatures.quantization import dequantise, quantise
from rws.edge.signatures.signature_set import SignatureSet, shallow_sha256
from rws.edge.signatures.tensor_file import read_tensors
from rws.errors import SignatureError
from support.tiny import make_signatures

SHAPES = {"layer/0.weight": (3, 2, 3, 3), "layer/0.bias": (3,)}
RNG = np.random.default_rng(4)
CLEAN = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
HASH = shallow_sha256(CLEAN)
CODES = [(bits, per) for bits in (4, 8, 16) for per in ("channel", "tensor")]


def assert_same(found: SignatureSet, expected: SignatureSet) -> None:
    assert (found.names, found.tensors, found.shapes) == (expected.names, expected.tensors, expected.shapes)
    assert (found.bits, found.per, found.clean_hash) == (expected.bits, expected.per, expected.clean_hash)
    for name in expected.names:
        for tensor, entry in expected.entries[name].items():
            np.testing.assert_array_equal(found.entries[name][tensor].values, entry.values)
            np.testing.assert_array_equal(found.entries[name][tensor].scale, entry.scale)
            assert found.entries[name][tensor].values.dtype == entry.values.dtype


@pytest.mark.parametrize(("bits", "per"), CODES)
def test_a_file_gives_back_what_was_saved(tmp_path, bits, per):
    signatures = make_signatures(CLEAN, bits=bits, per=per)
    signatures.save(tmp_path / "s.safetensors")
    assert_same(SignatureSet.load(tmp_path / "s.safetensors"), signatures)
    assert os.listdir(tmp_path) == ["s.safetensors"]


@settings(max_examples=50)
@given(
    names=st.lists(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True), min_size=1, max_size=4, unique=True
    ),
    tensors=st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12),
        st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
        min_size=1,
        max_size=4,
    ),
    code=st.sampled_from(CODES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_allowed_set_survives_its_bytes(names, tensors, code, seed):
    clean = {tensor + "_": np.zeros(shape, np.float32) for tensor, shape in tensors.items()}
    signatures = make_signatures(clean, [f"x{name}" for name in names], seed, bits=code[0], per=code[1])
    data = signatures.to_bytes()
    assert_same(SignatureSet.from_bytes(data), signatures)
    assert SignatureSet.from_bytes(data).to_bytes() == data


def test_the_same_set_gives_the_same_bytes():
    assert make_signatures(CLEAN).to_bytes() == make_signatures(CLEAN).to_bytes()


def test_the_layout_is_the_documented_one():
    tensors = safetensors.numpy.load(make_signatures(CLEAN, ["fog"]).to_bytes())
    found = {name: (str(array.dtype), array.shape) for name, array in tensors.items()}
    assert found == {
        "fog/layer/0.weight": ("int8", (3, 2, 3, 3)),
        "fog/layer/0.weight.scale": ("float32", (3,)),
        "fog/layer/0.bias": ("int8", (3,)),
        "fog/layer/0.bias.scale": ("float32", (3,)),
    }


def test_four_bits_take_half_a_byte_a_value():
    clean = {"w": np.zeros((8, 63), np.float32)}
    tensors = safetensors.numpy.load(make_signatures(clean, ["fog"], bits=4).to_bytes())
    assert tensors["fog/w"].shape == (8 * 63 // 2,)


def test_get_dequantises():
    delta = RNG.normal(size=(3, 4)).astype(np.float32)
    signatures = SignatureSet.from_deltas({"fog": {"w": delta}}, clean_hash=HASH)
    np.testing.assert_array_equal(signatures.get("fog")["w"], dequantise(quantise(delta)))
    with pytest.raises(SignatureError, match="'snow' is not there; known: fog"):
        signatures.get("snow")


def test_the_fingerprint_covers_names_shapes_order_and_every_value():
    variants = [
        CLEAN,
        dict(reversed(CLEAN.items())),
        {name + "x": array for name, array in CLEAN.items()},
        {name: array.reshape(-1) for name, array in CLEAN.items()},
        {name: np.nextafter(array, np.float32(9)) for name, array in CLEAN.items()},
    ]
    assert len({shallow_sha256(variant) for variant in variants}) == len(variants)
    assert shallow_sha256({name: np.asfortranarray(array) for name, array in CLEAN.items()}) == HASH


class TestFitting:
    def test_the_model_they_were_made_for(self):
        signatures = make_signatures(CLEAN)
        assert signatures.fitted_to(CLEAN) is signatures

    def test_other_weights_need_a_transfer(self):
        signatures, other = make_signatures(CLEAN), {name: array + 1 for name, array in CLEAN.items()}
        with pytest.raises(SignatureError, match="--transfer"):
            signatures.fitted_to(other)
        transferred = signatures.fitted_to(other, transfer=True)
        assert transferred.clean_hash == shallow_sha256(other)
        assert transferred.entries is signatures.entries

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ({"other": CLEAN["layer/0.bias"]}, "name the tensor 'layer/0.weight', which the model does not patch"),
            ({**CLEAN, "more": CLEAN["layer/0.bias"]}, "the model's tensors are layer/0.weight, layer/0.bias, more"),
            (dict(reversed(CLEAN.items())), "the model's tensors are layer/0.bias, layer/0.weight"),
            ({**CLEAN, "layer/0.bias": np.zeros(4, np.float32)}, r"shape \(3,\) for the tensor 'layer/0.bias'"),
        ],
    )
    def test_other_names_or_shapes_are_refused_even_then(self, model, message):
        with pytest.raises(SignatureError, match=message):
            make_signatures(CLEAN).fitted_to(model, transfer=True)


class TestAddingAndRemoving:
    def test_add_and_remove(self):
        few, many = make_signatures(CLEAN, ["fog"]), make_signatures(CLEAN, ["snow", "rain"], seed=1)
        joined = few.with_signatures(many, ["rain"])
        assert joined.names == ("fog", "rain")
        assert_same(joined.without("rain"), few)
        assert few.names == ("fog",)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (make_signatures(CLEAN, ["fog"]), "'fog' is already there; remove it first"),
            (make_signatures(CLEAN, ["snow"], bits=4), "4 bits per channel, expected 8 bits per channel"),
            (make_signatures(CLEAN, ["snow"], per="tensor"), "8 bits per tensor"),
            (make_signatures({**CLEAN, "z": CLEAN["layer/0.bias"]}, ["snow"]), "for another model"),
        ],
    )
    def test_what_does_not_go_together(self, other, message):
        with pytest.raises(SignatureError, match=message):
            make_signatures(CLEAN, ["fog"]).with_signatures(other, other.names)

    def test_unknown_and_last_names(self):
        fog = make_signatures(CLEAN, ["fog"])
        with pytest.raises(SignatureError, match="'snow' is not there"):
            fog.with_signatures(make_signatures(CLEAN, ["rain"]), ["snow"])
        with pytest.raises(SignatureError, match="'snow' is not there"):
            fog.without("snow")
        with pytest.raises(SignatureError, match="the only one"):
            fog.without("fog")


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({}, r"tensors is \[\], expected a list"),
        ({"fog": {}}, r"tensors is \[\], expected a list"),
        ({"a/b": CLEAN}, "names.0 is 'a/b', expected names of letters, digits"),
        ({"clean": CLEAN}, "names.0 is 'clean', expected .* not 'clean'"),
        ({"": CLEAN}, "names.0 is ''"),
        ({"../fog": CLEAN}, "names.0 is"),
        ({"fog": {"w.scale": np.zeros(3, np.float32)}}, "no name twice or with '.scale'"),
        ({"fog": {"w\n": np.zeros(3, np.float32)}}, r"tensors.0.name is 'w\\n'"),
        ({"fog": {"w": np.zeros((), np.float32)}}, "shape"),
        ({"fog": {"w": np.zeros((3, 0), np.float32)}}, "shape"),
        ({"fog": {"w": np.zeros(3)}}, "float64"),
        ({"fog": {"w": np.array([1, np.nan], np.float32)}}, "with NaN or infinity"),
        (
            {"fog": CLEAN, "snow": {"layer/0.bias": CLEAN["layer/0.bias"]}},
            "'snow' has the tensors layer/0.bias, expected",
        ),
        ({"fog": {"w": np.zeros(3, np.float32)}, "snow": {"w": np.zeros(4, np.float32)}}, r"float32 \(4,\)"),
    ],
)
def test_deltas_that_make_no_set(deltas, message):
    with pytest.raises(SignatureError, match=message):
        SignatureSet.from_deltas(deltas, clean_hash=HASH)


def damaged(bits=8, per="channel", tensors=lambda t: None, description=lambda d: None) -> bytes:
    """A file after its tensors and its description went through the given changes."""
    parts, words = read_tensors(make_signatures(CLEAN, ["fog", "snow"], bits=bits, per=per).to_bytes(), "original")
    parts = {name: array.copy() for name, array in parts.items()}
    tensors(parts)
    description(words)
    return bytes(safetensors.numpy.save(parts, {"rws": json.dumps(words)}))


def put(key, value):
    return lambda where: where.__setitem__(key, value)


def put_at(key, index, value):
    return lambda where: where[key].__setitem__(index, value)


WEIGHT, BIAS = "fog/layer/0.weight", "fog/layer/0.bias"

ABUSIVE_TENSORS = {
    "missing tensor": (lambda t: t.pop(BIAS), f"'{BIAS}' is missing"),
    "missing scale": (lambda t: t.pop(BIAS + ".scale"), f"'{BIAS}.scale' is missing"),
    "unknown tensor": (put("fog/other", np.zeros(1, np.int8)), "'fog/other' is unknown"),
    "unknown signature": (put("rain/layer/0.bias", np.zeros(3, np.int8)), "'rain/layer/0.bias' is unknown"),
    "float values": (put(BIAS, np.zeros(3, np.float32)), r"is float32 \(3,\), expected int8"),
    "NaN values": (put(BIAS, np.full(3, np.nan, np.float32)), "with NaN or infinity, expected int8"),
    "wide values": (put(BIAS, np.zeros(3, np.int16)), "is int16"),
    "wrong shape": (put(BIAS, np.zeros(4, np.int8)), r"is int8 \(4,\), expected int8 \(3,\)"),
    "transposed shape": (put(WEIGHT, np.zeros((2, 3, 3, 3), np.int8)), "expected int8"),
    "most negative code": (put_at(BIAS, 1, -128), "has the value -128, expected -127…127"),
    "NaN scale": (put_at(BIAS + ".scale", 0, np.nan), f"'{BIAS}.scale' has a value that is NaN"),
    "infinite scale": (put_at(BIAS + ".scale", 0, np.inf), "too large"),
    "scale that overflows": (put_at(BIAS + ".scale", 0, 3e38), "too large"),
    "zero scale": (put_at(BIAS + ".scale", 0, 0), "not above 0"),
    "negative scale": (put_at(BIAS + ".scale", 0, -1), "not above 0"),
    "double scale": (put(BIAS + ".scale", np.ones(3)), "is float64"),
    "scale per tensor": (put(BIAS + ".scale", np.ones((), np.float32)), r"expected float32 \(3,\)"),
}

ABUSIVE_DESCRIPTIONS = {
    "another format": (put("format", "lora"), "format is 'lora'"),
    "a later version": (put("version", 2), "format version is 2, this program reads 1"),
    "version as text": (put("version", "1"), "format version is '1'"),
    "unknown key": (put("extra", 1), "key 'extra' is unknown; known: bits"),
    "missing key": (lambda d: d.pop("bits"), "key 'bits' is missing"),
    "unknown bits": (put("bits", 7), "bits is 7, expected 4, 8 or 16"),
    "bits as a float": (put("bits", 8.0), "bits is 8.0"),
    "unknown per": (put("per", "row"), "per is 'row', expected 'channel' or 'tensor'"),
    "per as a list": (put("per", ["channel"]), r"per is \['channel'\]"),
    "no hash": (put("clean_sha256", "abc"), "expected 64 hexadecimal digits"),
    "hash of another type": (put("clean_sha256", None), "expected 64 hexadecimal digits"),
    "no names": (put("names", []), r"names is \[\]"),
    "names as text": (put("names", "fog"), "names is 'fog'"),
    "names as numbers": (put("names", [1, 2]), "names.0 is 1, expected"),
    "names nested": (put("names", [["fog"]]), "names.0 is"),
    "a name twice": (put("names", ["fog", "snow", "fog"]), "twice"),
    "a path as a name": (put("names", ["../../etc/passwd", "fog"]), "names.0 is"),
    "no tensors": (put("tensors", []), r"tensors is \[\]"),
    "tensors without shape": (put("tensors", [{"name": "w"}]), "key 'tensors.0.shape' is missing"),
    "tensors as text": (put("tensors", "w"), "tensors is 'w'"),
    "a tensor twice": (lambda d: d["tensors"].append(d["tensors"][0]), "twice"),
    "negative shape": (put_at("tensors", 0, {"name": "w", "shape": [-3]}), "expected .* above 0"),
    "huge shape": (
        put_at("tensors", 0, {"name": "layer/0.weight", "shape": [10**18]}),
        "tensors.0.shape.0 is 1000000000000000000",
    ),
    "shape as text": (put_at("tensors", 0, {"name": "w", "shape": "33"}), "expected .* above 0"),
    "another tensor name": (put_at("tensors", 0, {"name": "w", "shape": [3]}), "'fog/w' is missing"),
}


@pytest.mark.parametrize("case", ABUSIVE_TENSORS)
def test_abusive_tensors(case):
    change, message = ABUSIVE_TENSORS[case]
    with pytest.raises(SignatureError, match=message) as caught:
        SignatureSet.from_bytes(damaged(tensors=change), "my.safetensors")
    assert str(caught.value).startswith("my.safetensors: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ABUSIVE_DESCRIPTIONS)
def test_abusive_descriptions(case):
    change, message = ABUSIVE_DESCRIPTIONS[case]
    with pytest.raises(SignatureError, match=message) as caught:
        SignatureSet.from_bytes(damaged(description=change), "my.safetensors")
    assert "\n" not in str(caught.value)


def test_abusive_four_bit_codes():
    with pytest.raises(SignatureError, match="has the value -8, expected -7…7"):
        SignatureSet.from_bytes(damaged(bits=4, tensors=put_at(WEIGHT, 0, 0x08)))
    with pytest.raises(SignatureError, match="zero nibble"):
        SignatureSet.from_bytes(damaged(bits=4, tensors=put_at(BIAS, 1, 0x10)))
    with pytest.raises(SignatureError, match="has the value -32768"):
        SignatureSet.from_bytes(damaged(bits=16, tensors=put_at(BIAS, 1, -32768)))


def test_every_truncation_is_refused():
    data = make_signatures(CLEAN, ["fog"]).to_bytes()
    for length in range(len(data)):
        with pytest.raises(SignatureError, match="not a whole safetensors file"):
            SignatureSet.from_bytes(data[:length])


@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_signature_error(data):
    with pytest.raises(SignatureError):
        SignatureSet.from_bytes(data)


@settings(max_examples=300)
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_any_altered_byte_gives_a_set_or_a_signature_error(position, value):
    data = bytearray(make_signatures(CLEAN, ["fog"]).to_bytes())
    data[position % len(data)] = value
    with contextlib.suppress(SignatureError):
        found = SignatureSet.from_bytes(bytes(data))
        assert all(np.isfinite(array).all() for name in found.names for array in found.get(name).values())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no readable metadata"),
        ({"other": "x"}, "no readable metadata"),
        ({"rws": "{"}, "no readable metadata"),
        ({"rws": "[" * 100_000}, "no readable metadata"),
        ({"rws": "[]"}, "not a JSON object"),
    ],
)
def test_files_without_a_description(metadata, message):
    data = bytes(safetensors.numpy.save({"w": np.zeros(1, np.float32)}, metadata))
    with pytest.raises(SignatureError, match=message):
        SignatureSet.from_bytes(data)


def test_other_number_types_are_refused():
    data = bytes(safetensors.numpy.save({"w": np.zeros(1, np.float16)}, {"rws": "{}"}))
    with pytest.raises(SignatureError, match="'w' has type F16"):
        SignatureSet.from_bytes(data)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SignatureError, match="cannot be read"):
        SignatureSet.load(tmp_path / "none.safetensors")
    with pytest.raises(SignatureError, match="cannot be read"):
        SignatureSet.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    for name, message in {"pipe": "not a regular file", "sparse": "expected at most", "a\0b": "no file can"}.items():
        with pytest.raises(SignatureError, match=f"cannot be read .*{message}"):
            SignatureSet.load(tmp_path / name)
