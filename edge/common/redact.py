"""Removes passwords from what is shown or stored."""

import re

_SECRETS = "password|passwd|pwd|pass|p|loginpas|auth|key|apikey|token|secret"


def hide_password(text: str) -> str:
    """Return the text with the password of each URL replaced by ***: before the host, or named in path or query."""
    text = re.sub(r"(://[^/@:\s]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(rf"(?i)((?<![a-z])(?:{_SECRETS})=)[^&\s/]+", r"\1***", text)
