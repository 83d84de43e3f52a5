"""What went wrong in somebody else's code, in one line."""

import textwrap
from collections.abc import Iterable


def reason(error: BaseException, width: int = 300) -> str:
    """The message of `error` on one line of at most `width` characters; its type if it has no message."""
    return textwrap.shorten(str(error), width, placeholder=" …") or type(error).__name__


def listing(names: Iterable[object], width: int = 300) -> str:
    """Several values as `'a', 'b', 'c'`, cut after `width` characters."""
    return textwrap.shorten(", ".join(map(repr, names)), width, placeholder=" …")
