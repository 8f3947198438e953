"""Access control: a token, or (on this machine only) a Host header that no foreign web page can forge."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Collection

from aiohttp import web

from rws.edge.web.address import is_loopback
from rws.errors import UsageError

MIN_TOKEN = 8
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REFUSED = (
    "this page needs its token: open the link that `rws run` printed, or send it as `Authorization: Bearer TOKEN`\n"
)
WRONG_HOST = "this page answers to localhost and 127.0.0.1 only; to serve other names, start it with a token\n"


def check_token(token: str) -> str:
    """Return the token; raise UsageError if it has under 8 characters, or contains a space or a control character."""
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        expected = f"at least {MIN_TOKEN}, without spaces: it gives access to the camera"
        raise UsageError(f"the token has {len(token)} characters; expected {expected}")
    return token


class TokenAuth:
    """Rejects unauthorised requests.

    A request carries the token as `Authorization: Bearer`, as `?token=`, or as the cookie that the page sets when it is
    opened with `?token=`; the port distinguishes the cookies of two servers of one machine. Without a token the Host
    header must be `localhost`, a loopback address or in `hosts`: a page elsewhere can resolve its name to 127.0.0.1.
    """

    def __init__(self, token: str | None, *, port: int, hosts: Collection[str] = ()) -> None:
        self._token = token
        self._hosts = {"localhost", *hosts}
        self._cookie_name = f"rws_{port}"
        # The cookie proves that its bearer had the token, without revealing it.
        self._cookie = hashlib.sha256((token or "").encode()).hexdigest()

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request, or reject it; a middleware of aiohttp."""
        if self._token is None:
            name = re.sub(r":[0-9]+$", "", request.host).lower()
            local = name in self._hosts or is_loopback(name)
            return await handler(request) if local else web.Response(status=403, text=WRONG_HOST)
        if not self._is_known(request, self._token):
            return web.Response(status=401, text=REFUSED, headers={"WWW-Authenticate": "Bearer"})
        if request.path == "/" and "token" in request.query:
            return self._signed_in(request)
        return await handler(request)

    def _is_known(self, request: web.Request, token: str) -> bool:
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        return (
            (scheme.lower() == "bearer" and _same(sent.strip(), token))
            or _same(request.query.get("token", ""), token)
            or _same(request.cookies.get(self._cookie_name, ""), self._cookie)
        )

    def _signed_in(self, request: web.Request) -> web.StreamResponse:
        response = web.Response(status=303, headers={"Location": "./"})
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            # A browser that follows a link from another site keeps a strict cookie back through a redirect, too.
            response = web.Response(headers={"Refresh": "0; url=./"}, text="Opening the page …\n")
        response.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="Strict")
        return response


def _same(sent: str, expected: str) -> bool:
    return hmac.compare_digest(sent.encode(errors="backslashreplace"), expected.encode())
