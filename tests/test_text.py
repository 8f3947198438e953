import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rws.text import encoding_advice, printable, shown, shown_address, shown_lines


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("rtsp://me:hush@cam/one", "rtsp://cam"),
        ("rtsp://cam:554/stream?user=me&password=hush", "rtsp://cam:554"),
        ("rtsp://cam/user=me_password=hush_channel=1/x", "rtsp://cam"),
        ("http://cam/live#hush", "http://cam"),
        ("rtsp://me:hu@sh@cam/one", "rtsp://cam"),
        ("http://me:hu sh@1@cam:8080/digest?k=hush", "http://cam:8080"),
        ("http://me:h@u:s/h#d?1@cam:8080/basic", "http://***"),
        ("http://me:12/34@cam", "http://***"),
        ("http://me:hush", "http://***"),
        ("rtmp://cam/app token=hush live=1", "rtmp://cam"),
        ("concat:http://me:hush@a/x|http://me:hush@b/y", "http://***"),
        ("srt://cam:9000?passphrase=hush", "srt://cam:9000"),
        ("rtsp://me:hush@[::1]:554/one", "rtsp://[::1]:554"),
        ("rtsp://me:hu\x1b[31msh@cam/one", "rtsp://cam"),
        ("http://cam/mail?to=a@b", "http://cam"),
        ("http://cäm/hush", "http://cäm"),
    ],
)
def test_of_an_address_scheme_and_host_are_shown(address, expected):
    assert shown_address(address) == expected
    assert shown_address(expected) == shown(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lost: rtsp://me:hush@cam/one: timed out", "lost: rtsp://cam: timed out"),
        ("rtsp://me:hu sh@cam/one, again", "rtsp://cam, again"),
        ("see (https://docs/hush).", "see (https://docs)."),
        ("expected rtsp://, http://, ...", "expected rtsp://, http://, ..."),
        ("/media/me/a:b@c.mp4", "/media/me/a:b@c.mp4"),
        ("http://a/hush then http://b/hush", "http://a then http://b"),
    ],
)
def test_addresses_in_a_sentence_lose_what_may_be_secret(text, expected):
    assert shown(text) == expected


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), st.sampled_from(["", "/one", "?k=1", ":80/a"]))
def test_no_password_of_any_characters_is_shown(password, rest):
    secret = f"QQ{password}QQ"
    for text in (shown_address(f"rtsp://me:{secret}@cam{rest}"), shown(f"rtsp://me:{secret}@cam{rest}")):
        assert "QQ" not in text


@pytest.mark.parametrize("password", ["hu#sh", "hu/sh", "hu?sh", "hu@sh", "hu sh", "p@s:s/w#d?1"])
def test_an_unencoded_character_is_named(password):
    assert "percent-encode" in (advice := encoding_advice(f"http://me:{password}@cam:80/one"))
    assert shown(f"http://***: timed out{advice}") == f"http://***: timed out{advice}"


@pytest.mark.parametrize(
    "address", ["http://cam/a@b", "rtsp://me:hu%23sh@cam:554/a?b#c", "udp://@239.0.0.1:1234", "rtsp://[::1]/"]
)
def test_a_sound_address_needs_no_advice(address):
    assert encoding_advice(address) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (os.fsdecode(b"Caf\xe9.png"), r"Caf\xe9.png"),
        ("a\x1b]0;title\x07\x1b[2J", r"a\x1b]0;title\x07\x1b[2J"),
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("one\ntwo\rthree\u2028four\x85", r"one\ntwo\rthree\u2028four\x85"),
        ("nul\0", r"nul\x00"),
        ("\ud800", r"\ud800"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\x9b31m", r"\x9b31m"),  # the control sequence introducer in one character
        ("写真\u30001é \U0001f600.png", "写真\u30001é \U0001f600.png"),
    ],
)
def test_what_steers_a_terminal_or_is_no_unicode_is_escaped(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


@given(st.text())
def test_every_text_becomes_one_line_of_unicode(text):
    found = printable(text)
    assert len(found.splitlines()) <= 1
    assert found.encode() or not text
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in found)


def test_lines_stay_lines():
    assert shown_lines("a\x1b\nhttp://b/hush") == "a\\x1b\nhttp://b"
