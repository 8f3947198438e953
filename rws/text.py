"""Text from outside (names, addresses, messages), made safe for terminals, tables, JSON and native code."""

import re
import unicodedata

HIDDEN = "***"
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})  # controls, invisible formats, lone surrogates, line ends
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*)://"
_URL = re.compile(
    _SCHEME + r"(?!\*\*\*)(\S.*@\S*|\S+)", re.DOTALL
)  # up to the last @, because a password may contain blanks
_ADDRESS = re.compile(_SCHEME + "(.*)", re.DOTALL)
_AUTHORITY = re.compile(r"([^/?#]*)(.*)", re.DOTALL)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%\w]+\]|[\w.~-]+)(?::[0-9]{1,5})?")
_PUNCTUATION = ".,:;'\")]}"


def printable(text: str) -> str:
    r"""Return a text with escapes for what steers a terminal, ends a line or is not Unicode: `\x1b`, `\u202e`.

    A byte of a file name that is not UTF-8 becomes `\xe9`.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def shown(text: str) -> str:
    """Return a text as it may be shown and stored: printable, and of each URL scheme and host only."""
    return printable(_URL.sub(_scheme_and_host, text) if "://" in text else text)


def shown_lines(text: str) -> str:
    """Return a text whose lines are each as `shown` gives them."""
    return "\n".join(map(shown, text.split("\n")))


def shown_address(address: str) -> str:
    """Return scheme and host of a URL, because user info, path and query may contain secrets.

    The host is hidden, too, if a character that should be percent-encoded leaves open where it begins.
    """
    found = _ADDRESS.search(address)
    return printable(_scheme_and_host(found) if found else address)


def encoding_advice(url: str) -> str:
    """Return what to do about characters in the user info of a URL that must be percent-encoded; "" if none is seen."""
    authority, rest = _split(url.partition("://")[2])
    user, at, host = authority.rpartition("@")
    begun_early = "@" in rest and (at or ":" in authority)
    if not (begun_early or re.search(r"[\s@]", user) or (host and _HOST.fullmatch(host) is None)):
        return ""
    # Without the sign itself, up to which `shown` looks for a password.
    codes = "# is %23, / is %2F, ? is %3F, a blank is %20, an at sign is %40"
    return f"; if its user name or password contains one of these, percent-encode it: {codes}"


def _scheme_and_host(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    known = rest.rstrip(_PUNCTUATION)
    if rest and not known:
        return match[0]  # a sentence about URLs, not one
    authority, behind = _split(known)
    host = authority.rpartition("@")[2]
    ambiguous = "@" in behind and authority != host.partition(":")[0]
    return f"{scheme}://{HIDDEN if ambiguous or _HOST.fullmatch(host) is None else host}{rest[len(known) :]}"


def _split(rest: str) -> tuple[str, str]:
    found = _AUTHORITY.fullmatch(rest)
    assert found is not None
    return found[1], found[2]


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    code = ord(character)
    # A byte that is not UTF-8 is kept by Python as a lone surrogate.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]
