"""The wording that error messages share: suggestions, lists and other programs' errors, each on one line."""

import difflib
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fineprune.errors import FinepruneError

_Value = TypeVar("_Value")


# Control characters, which a terminal would obey; a tab stays.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\t")}
_CONTROLS |= {ord("\n"): "\\n", ord("\r"): "\\r"}


def printable(text: str) -> str:
    """Return a line for a terminal: with its control characters, such as escape sequences, spelled out."""
    return text.translate(_CONTROLS)


def one_line(error: BaseException, width: int = 300) -> str:
    """Return the message of `error` on one line of at most `width` characters; its type if it has none."""
    return textwrap.shorten(str(error), width, placeholder=" …") or type(error).__name__


def listing(names: Iterable[object], width: int = 300) -> str:
    """Return several values as `'a', 'b', 'c'`, cut after `width` characters."""
    return textwrap.shorten(", ".join(map(repr, names)), width, placeholder=" …")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the settings in which two mappings differ, each as "section.name: 1 there, 2 now"."""
    found = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new, key = before.get(name), now.get(name), f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{key}.")
        elif old != new:
            found.append(f"{key}: {old!r} there, {new!r} now")
    return found


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the known names that look most like `name`, in whatever case, best first."""
    folded = {one.casefold(): one for one in known}
    return [folded[one] for one in difflib.get_close_matches(name.casefold(), folded, n=count, cutoff=0.4)]


def suggestion(value: object, known: Iterable[str], count: int = 1) -> str:
    """Return "did you mean x? ", with the space behind it, or nothing where no known name is near."""
    close = near(str(value), known, count)
    return f"did you mean {' or '.join(close)}? " if close else ""


def choose(value: _Value, known: Iterable[str], what: str) -> _Value:
    """Return `value` if it is one of the `known` names.

    Raises:
        FinepruneError: "WHAT='value': did you mean x? allowed are x, y, z".
    """
    allowed = list(known)
    if value not in allowed:
        raise FinepruneError(
            f"{what}={value!r}: {suggestion(value, allowed)}allowed are {', '.join(allowed)}"
        )
    return value
