import socket

import pytest

from rws.edge.web import address
from rws.errors import InputError, RwsError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("my-box.local:8080", ("my-box.local", 8080)),
        ("8080", ("127.0.0.1", 8080)),
    ],
)
def test_parse(text, expected):
    assert address.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "::1:80",
        "http://127.0.0.1:80",
        "a b:80",
    ],
)
def test_a_malformed_address_is_refused_in_one_line(text):
    with pytest.raises(InputError, match=r"expected HOST:PORT, for example 127\.0\.0\.1:8080$") as caught:
        address.listen(text)
    assert "\n" not in str(caught.value)


def test_a_taken_port_says_so():
    with address.listen("127.0.0.1:0") as first:
        port = first.getsockname()[1]
        with pytest.raises(RwsError, match=f"127.0.0.1:{port}.*another program uses this port"):
            address.listen(f"127.0.0.1:{port}")


def test_an_address_of_another_machine_says_so():
    with pytest.raises(RwsError, match="this machine has no such address"):
        address.listen("203.0.113.7:0")


def test_an_unknown_host_says_so():
    with pytest.raises(InputError, match=r"host 'nowhere\.invalid' is unknown"):
        address.listen("nowhere.invalid:8080")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("localhost", False), ("", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert address.is_loopback(host) is expected


def test_url_has_the_given_host_and_the_real_port():
    with address.listen("localhost:0") as listener:
        assert address.url("localhost:0", listener) == f"http://localhost:{listener.getsockname()[1]}/"


def test_url_of_all_networks_is_one_that_can_be_opened():
    with address.listen("0.0.0.0:0") as listener:
        url = address.url("0.0.0.0:0", listener)
    assert "0.0.0.0" not in url


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_networks_of_ipv6_take_ipv4_too():
    with address.listen("[::]:0") as listener, socket.create_connection(listener.getsockname()[:2]):
        pass
    with address.listen("[::]:0") as listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass
