"""Access control: a token, or (on this machine only) a Host header that no foreign web page can forge."""

import hashlib
import hmac
import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web

from rws.edge.web.address import is_loopback
from rws.errors import UsageError
from rws.records import Clock

MIN_TOKEN = 8
GUESSES, GUESS_PERIOD = 10, 1.0  # wrong tokens of one address that are looked at at once, then seconds per further one
GUESSES_OF_ALL = 10  # times as many of all addresses that have guessed wrong
MOST_ADDRESSES = 1024  # whose wrong tokens are remembered
MOST_SESSIONS, SESSION_AGE = 64, 7 * 24 * 3600.0  # browsers that are signed in, and seconds until they have to again

FOREIGN = "only the page itself, or a program, may send this\n"
REFUSED = (
    "this page needs its token: open the link that `rws run` printed, or send it as `Authorization: Bearer TOKEN`\n"
)
GUESSING = "too many wrong tokens came from this address; try again in {wait} s\n"
WRONG_HOST = "this page answers to localhost and 127.0.0.1 only; to serve other names, start it with a token\n"


def check_token(token: str) -> str:
    """Return the token; raise UsageError if it has under 8 characters, or contains a space or a control character."""
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        expected = f"at least {MIN_TOKEN}, without spaces: it gives access to the camera"
        raise UsageError(f"the token has {len(token)} characters; expected {expected}")
    return token


class TokenAuth:
    """Rejects unauthorised requests.

    A request carries the token as `Authorization: Bearer`, as `?token=`, or a cookie that the page sets when it is
    opened with `?token=`; the port distinguishes the cookies of two servers of one machine. Without a token the Host
    header must be `localhost`, a loopback address or in `hosts`: a page elsewhere can resolve its name to 127.0.0.1.
    """

    def __init__(self, token: str | None, *, port: int, clock: Clock, hosts: Collection[str] = ()) -> None:
        self._token = token
        self._hosts = {"localhost", *hosts}
        self._cookie_name = f"rws_{port}"
        self._clock, self._guesses, self._sessions = clock, _Guesses(), _Sessions()

    def refusal(self, request: web.Request, address: str) -> tuple[str, web.Response] | None:
        """Return why a request from a client's address is refused, and the answer; None if it has access."""
        if self._token is None:
            name = re.sub(r":[0-9]+$", "", request.host).lower()
            local = name in self._hosts or is_loopback(name)
            return None if local else ("wrong_host", web.Response(status=403, text=WRONG_HOST))
        now = self._clock()
        if self._sessions.knows(self._cookie(request), now):
            return None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        sent = [bearer.strip()] if scheme.lower() == "bearer" else []
        sent += request.query.getall("token", [])[:1]
        if sent and (wait := self._guesses.wait(address, now)):
            text, headers = GUESSING.format(wait=math.ceil(wait)), {"Retry-After": str(math.ceil(wait))}
            return "guessing", web.Response(status=429, text=text, headers=headers)
        if any(_same(one, self._token) for one in sent):
            return None
        if sent:
            self._guesses.add(address, now)
        response = web.Response(status=401, text=REFUSED, headers={"WWW-Authenticate": "Bearer"})
        return ("wrong_token" if sent else "no_token"), response

    def foreign(self, request: web.Request) -> tuple[str, web.Response] | None:
        """Return why a request that changes something is refused, and the answer: another web page has sent it.

        Browsers say so in one of two headers; a program sends neither.
        """
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        own = site == "same-origin" if site is not None else origin is None or urlsplit(origin).netloc == request.host
        return None if own else ("origin", web.Response(status=403, text=FOREIGN))

    def sign_in(self, request: web.Request) -> web.Response:
        """Return an answer that sets a cookie, random and known to this server only, and leads to the page."""
        response = web.Response(status=303, headers={"Location": "./"})
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            # A browser that follows a link from another site keeps a strict cookie back through a redirect, too.
            response = web.Response(headers={"Refresh": "0; url=./"}, text="Opening the page …\n")
        # Whoever forges this header loses their own cookie only.
        secure = request.headers.get("X-Forwarded-Proto", "").lower() == "https"
        cookie = self._sessions.begin(self._clock())
        response.set_cookie(self._cookie_name, cookie, httponly=True, samesite="Strict", secure=secure or None)
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        """Forget the cookie of a request; the next request with it is refused."""
        self._sessions.end(self._cookie(request))
        response = web.Response(status=204)
        response.del_cookie(self._cookie_name, httponly=True, samesite="Strict")
        return response

    def _cookie(self, request: web.Request) -> str:
        return request.cookies.get(self._cookie_name, "")


class _Sessions:
    """The browsers that are signed in, the oldest one first; of their cookies only hashes are kept and looked up."""

    def __init__(self) -> None:
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def begin(self, now: float) -> str:
        cookie = secrets.token_urlsafe(32)
        self._ends[_digest(cookie)] = now + SESSION_AGE
        if len(self._ends) > MOST_SESSIONS:
            self._ends.popitem(last=False)
        return cookie

    def knows(self, cookie: str, now: float) -> bool:
        return now < self._ends.get(_digest(cookie), -math.inf)

    def end(self, cookie: str) -> None:
        self._ends.pop(_digest(cookie), None)


class _Guesses:
    """Wrong tokens, per address and of all addresses; an address without one is never kept waiting."""

    def __init__(self) -> None:
        # When what an address has used up is available again; the one that guessed last is the last one.
        self._whole_at: OrderedDict[str, float] = OrderedDict()
        self._all_whole_at = -math.inf

    def wait(self, address: str, now: float) -> float:
        """Return the seconds until a token of this address is looked at."""
        if address not in self._whole_at:
            return 0.0
        own = self._whole_at[address] - (GUESSES - 1) * GUESS_PERIOD
        of_all = self._all_whole_at - (GUESSES * GUESSES_OF_ALL - 1) * GUESS_PERIOD / GUESSES_OF_ALL
        return max(0.0, own - now, of_all - now)

    def add(self, address: str, now: float) -> None:
        self._whole_at[address] = max(now, self._whole_at.pop(address, now)) + GUESS_PERIOD
        self._all_whole_at = max(now, self._all_whole_at) + GUESS_PERIOD / GUESSES_OF_ALL
        if len(self._whole_at) > MOST_ADDRESSES:
            self._whole_at.popitem(last=False)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="backslashreplace")).digest()


def _same(sent: str, expected: str) -> bool:
    return hmac.compare_digest(sent.encode(errors="backslashreplace"), expected.encode())
