import contextlib
import hashlib
import http.client
import re
from collections import Counter

import pytest
from aiohttp.test_utils import make_mocked_request

from rws.edge.web import PageServer, auth
from rws.errors import InputError
from support.fakes import StillClock
from support.http import get, wait_until

TOKEN = "sesame/+=&öffne"
ROUTES = (
    *(
        "/",
        "/page.css",
        "/page.js",
        "/timeline.js",
        "/frame.jpg",
        "/snapshot.jpg",
        "/clip.mp4",
        "/stream.mjpg",
        "/events",
    ),
    *("/api/status", "/metrics", "/health", "/nowhere"),
)


@pytest.fixture
def guarded(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}, token=TOKEN) as server:
        yield server


@pytest.fixture
def local(monitor):
    with PageServer("127.0.0.1:0", {"": monitor}) as server:
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
    with PageServer("0.0.0.0:0", {"": monitor}) as first, PageServer("0.0.0.0:0", {"": monitor}) as second:
        assert len(first.token) >= 20
        assert first.token != second.token
        assert first.url_with_token.endswith(f":{first.port}/?token={first.token}")
        assert get(first, "/health")[0] == 401
        assert get(first, f"/health?token={first.token}")[0] == 200


@pytest.mark.parametrize("token", ["", "short", "with a space", "line\nbreak"])
def test_a_weak_token_is_refused(monitor, token):
    with pytest.raises(InputError, match="expected at least 8, without spaces"):
        PageServer("127.0.0.1:0", {"": monitor}, token=token)


def bearer(token):
    return {"Authorization": f"Bearer {token}".encode()}


def sign_in(server):
    headers = get(server, f"/?{server.url_with_token.partition('?')[2]}")[1]
    return headers["Set-Cookie"].partition(";")[0]


def get_from(server, address, path, **headers):
    """Status of a request from another address of loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10, source_address=(address, 0))
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def test_a_guesser_is_slowed_down_and_nobody_else_is(guarded):
    cookie = sign_in(guarded)
    statuses = [get(guarded, "/health", **bearer(f"wrong-{index}"))[0] for index in range(50)]
    assert statuses[: auth.GUESSES] == [401] * auth.GUESSES
    assert statuses.count(429) >= 30
    status, headers, body = get(guarded, "/health?token=wrong-again")
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 2
    assert re.fullmatch(rb"too many wrong tokens came from this address; try again in \d s\n", body)
    # Elsewhere, and for a browser that is signed in, at once; here as soon as the time is over.
    assert get_from(guarded, "127.0.0.2", "/health", **bearer(TOKEN)) == 200
    assert get(guarded, "/health", Cookie=cookie)[0] == 200
    assert get(guarded, "/health")[0] == 401
    wait_until(lambda: get(guarded, "/health", **bearer(TOKEN))[0] == 200)


def test_ten_thousand_guesses_are_answered_and_few_are_looked_at():
    clock = StillClock()
    guard = auth.TokenAuth(TOKEN, port=1, clock=clock)
    answers = Counter()
    for index in range(10_000):
        clock.now += 0.01
        request = make_mocked_request("GET", f"/?token=wrong-{index}")
        answers[guard.refusal(request, "192.0.2.1")[0]] += 1
    assert answers["wrong_token"] == pytest.approx(auth.GUESSES + 100 / auth.GUESS_PERIOD, abs=1)
    assert answers.total() == 10_000
    clock.now += auth.GUESS_PERIOD
    right = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert guard.refusal(right, "192.0.2.1") is None


def test_many_addresses_together_are_slowed_down_and_new_ones_are_not():
    clock = StillClock()
    guard = auth.TokenAuth(TOKEN, port=1, clock=clock)
    wrong = make_mocked_request("GET", "/?token=wrong-wrong")
    reasons = Counter(
        guard.refusal(wrong, f"192.0.{index // 250}.{index % 250}")[0] for _ in range(5) for index in range(1000)
    )
    assert reasons["wrong_token"] == 1000  # each address once
    right = make_mocked_request("GET", "/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert guard.refusal(right, "198.51.100.1") is None
    assert guard.refusal(right, "192.0.0.1")[0] == "guessing"


def test_cookies_are_random_and_of_one_run(monitor, guarded):
    first, second = sign_in(guarded), sign_in(guarded)
    assert first != second
    assert len(first.partition("=")[2]) >= 43
    for cookie in (first, second):
        assert get(guarded, "/health", Cookie=cookie)[0] == 200
    name = first.partition("=")[0]
    for guess in ("", "a" * 43, hashlib.sha256(TOKEN.encode()).hexdigest(), TOKEN.encode().hex()):
        assert get(guarded, "/health", Cookie=f"{name}={guess}")[0] == 401
    with PageServer("127.0.0.1:0", {"": monitor}, token=TOKEN) as restarted:
        value = first.partition("=")[2]
        assert get(restarted, "/health", Cookie=f"rws_{restarted.port}={value}")[0] == 401


def test_signing_out_ends_one_session(guarded):
    first, second = sign_in(guarded), sign_in(guarded)
    assert get(guarded, "/signout", Cookie=first)[0] == 405  # no link may do it
    status, headers, _ = get(guarded, "/signout", method="POST", Cookie=first)
    assert status == 204
    assert "Max-Age=0" in headers["Set-Cookie"]
    assert get(guarded, "/health", Cookie=first)[0] == 401
    assert get(guarded, "/health", Cookie=second)[0] == 200
    assert get(guarded, "/signout", method="POST")[0] == 401


@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({}, True),  # a program
        ({"Sec_Fetch_Site": "same-origin", "Origin": "https://proxy.example"}, True),
        ({"Sec_Fetch_Site": "same-site", "Origin": "http://localhost:3000"}, False),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "http://evil.example"}, False),
        ({"Sec_Fetch_Site": "none"}, False),
        ({"Origin": "http://camera.example:8080"}, True),  # without TLS, a browser sends only this one
        ({"Origin": "http://camera.example"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
    ],
)
@pytest.mark.parametrize("path", ["/limits?leave_clean=1", "/signout"])
def test_no_other_web_page_changes_anything(guarded, monitor, path, headers, taken):
    cookie = sign_in(guarded)
    status, _, _ = get(guarded, path, method="POST", Cookie=cookie, Host="camera.example:8080", **headers)
    assert status == (403 if not taken else 200 if path.startswith("/limits") else 204)
    assert monitor.limits.leave_clean is (taken and path.startswith("/limits"))
    assert get(guarded, "/health", Cookie=cookie)[0] == (401 if taken and path == "/signout" else 200)
    text = get(guarded, "/metrics", **bearer(TOKEN))[2].decode()
    assert ('rws_http_refused_total{reason="origin"} 1.0' in text) is not taken


def test_without_a_token_another_web_page_cannot_change_anything_either(local, monitor):
    assert get(local, "/limits?leave_clean=1", method="POST", Origin="http://evil.example")[0] == 403
    assert not monitor.limits.leave_clean
    assert get(local, "/limits?leave_clean=1", method="POST", Origin=f"http://127.0.0.1:{local.port}")[0] == 200
    assert monitor.limits.leave_clean


def test_sessions_end_with_time_and_are_limited_in_number():
    clock = StillClock()
    guard = auth.TokenAuth(TOKEN, port=1, clock=clock)

    def cookie():
        return guard.sign_in(make_mocked_request("GET", f"/?token={TOKEN}")).cookies["rws_1"].value

    def known(value):
        return guard.refusal(make_mocked_request("GET", "/", headers={"Cookie": f"rws_1={value}"}), "a") is None

    first = cookie()
    assert known(first)
    clock.now += auth.SESSION_AGE + 1
    assert not known(first)
    cookies = [cookie() for _ in range(auth.MOST_SESSIONS + 1)]
    assert [known(value) for value in cookies] == [False] + [True] * auth.MOST_SESSIONS


@pytest.mark.parametrize(("sent", "secure"), [({}, False), ({"X_Forwarded_Proto": "https"}, True)])
def test_behind_a_proxy_with_tls_the_cookie_stays_with_it(guarded, sent, secure):
    headers = get(guarded, f"/?{guarded.url_with_token.partition('?')[2]}", **sent)[1]
    assert ("Secure" in headers["Set-Cookie"]) is secure
