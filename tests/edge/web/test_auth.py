import re

import pytest

from rws.edge.web import PageServer
from rws.errors import InputError
from support.http import get

TOKEN = "sesame/+=&öffne"
ROUTES = (
    *("/", "/page.css", "/page.js", "/timeline.js", "/frame.jpg", "/stream.mjpg", "/events"),
    *("/api/status", "/metrics", "/health", "/nowhere"),
)


@pytest.fixture
def guarded(monitor):
    with PageServer("127.0.0.1:0", monitor, token=TOKEN) as server:
        yield server


@pytest.fixture
def local(monitor):
    with PageServer("127.0.0.1:0", monitor) as server:
        yield server


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_nothing_without_the_token(guarded, path, method):
    status, headers, body = get(guarded, path, method=method)
    assert status == 401
    assert headers["WWW-Authenticate"] == "Bearer"
    assert body.count(b"\n") == (0 if method == "HEAD" else 1)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}".encode()},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Cookie": "rws=1"},
    ],
)
def test_a_wrong_token_is_refused(guarded, headers):
    assert get(guarded, "/health", **headers)[0] == 401
    assert get(guarded, "/health?token=sesame", **headers)[0] == 401
    assert get(guarded, "/health?token=%FF%00", **headers)[0] == 401
    assert get(guarded, "/health?token=", **headers)[0] == 401


def test_the_token_is_accepted_as_bearer_and_in_the_address(guarded):
    assert get(guarded, "/health", Authorization=f"Bearer {TOKEN}".encode())[0] == 200
    assert get(guarded, "/health", Authorization=f"bearer  {TOKEN}".encode())[0] == 200
    query = guarded.url_with_token.partition("?")[2]
    assert get(guarded, f"/metrics?{query}")[0] == 200


def test_the_page_keeps_the_token_as_a_cookie_and_drops_it_from_the_address(guarded):
    query = guarded.url_with_token.partition("?")[2]
    status, headers, _ = get(guarded, f"/?{query}")
    assert status == 303
    assert headers["Location"] == "./"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    name, value = re.match(r"(\w+)=([^;]+)", cookie).groups()
    assert str(guarded.port) in name
    assert "sesame" not in value
    status, headers, body = get(guarded, "/", Cookie=f"{name}={value}")
    assert status == 200
    assert b"<!doctype html>" in body
    assert get(guarded, "/", Cookie=f"{name}={value[:-1]}")[0] == 401


def test_a_link_from_another_site_gets_there_without_a_redirect(guarded):
    # A browser would send no strict cookie through a redirect that another site began.
    query = guarded.url_with_token.partition("?")[2]
    status, headers, _ = get(guarded, f"/?{query}", Sec_Fetch_Site="cross-site")
    assert status == 200
    assert headers["Refresh"] == "0; url=./"
    assert "Set-Cookie" in headers


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"]
)
def test_without_a_token_this_machine_has_access(local, host):
    assert local.token is None
    assert local.url_with_token == local.url == f"http://127.0.0.1:{local.port}/"
    assert get(local, "/health", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2", "", "["],
)
@pytest.mark.parametrize("path", ["/", "/health", "/stream.mjpg", "/nowhere"])
def test_another_name_for_this_machine_is_refused(local, host, path):
    status, _, body = get(local, path, Host=host)
    assert status == 403
    assert body.count(b"\n") == 1


def test_with_a_token_any_host_name_is_accepted(guarded):
    assert get(guarded, "/health", Host="edge.example", Authorization=f"Bearer {TOKEN}".encode())[0] == 200


def test_for_other_machines_a_token_is_generated(monitor):
    with PageServer("0.0.0.0:0", monitor) as first, PageServer("0.0.0.0:0", monitor) as second:
        assert len(first.token) >= 20
        assert first.token != second.token
        assert first.url_with_token.endswith(f":{first.port}/?token={first.token}")
        assert get(first, "/health")[0] == 401
        assert get(first, f"/health?token={first.token}")[0] == 200


@pytest.mark.parametrize("token", ["", "short", "with a space", "line\nbreak"])
def test_a_weak_token_is_refused(monitor, token):
    with pytest.raises(InputError, match="expected at least 8, without spaces"):
        PageServer("127.0.0.1:0", monitor, token=token)
