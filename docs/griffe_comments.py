"""An extension of griffe: the comment behind a field is its documentation, as in `index: int  # from 0`."""

import re
from typing import Any

from griffe import Attribute, Docstring, Extension

_COMMENT = re.compile(r"\s#\s(.*)$")


class CommentsAsDocstrings(Extension):
    """Takes the comment of an attribute that has no docstring."""

    def on_attribute(self, *, attr: Attribute, **_kwargs: Any) -> None:
        """Set the docstring of an attribute from the comment in its last line."""
        if attr.docstring is None and not attr.is_alias and attr.parent is not None and attr.parent.is_class:
            found = _COMMENT.search(attr.source)
            if found:
                text = f"{found[1][0].upper()}{found[1][1:].rstrip('.')}."
                attr.docstring = Docstring(text, lineno=attr.lineno, endlineno=attr.endlineno, parent=attr)
