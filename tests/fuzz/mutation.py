"""Odd values, and changes of JSON documents and of bytes, that all kinds of inputs share."""

import copy
import json
import random
from typing import Any

DEEP, LONG, NAN = "@deep", "@long", "@nan"  # what json.dumps does not write
MARK = "<b id=fuzz>"  # a page must escape it
ODD: list[Any] = [
    None, True, False, 0, 1, 2, -1, 0.5, 1e300, 255, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
    10**400, "", "x", "\0", "1", [], [1], [[]], [0, 1], {}, {"": []}, DEEP, LONG, NAN,
    MARK, "\ud800", "../..", "/dev/zero", "é€😀", -0.0, 1e-300, {"a": {"b": None}}, ["x", None], "nan", "-1",
]  # fmt: skip
# transformers makes as many layers as config.json says.
SMALL = [odd for odd in ODD if not isinstance(odd, int | float) or abs(odd) < 256]


def mangled(chance: random.Random, content: bytes, begin: int = 0) -> bytes:
    """Bytes with something wrong from `begin` on."""
    size = len(content)
    if size <= begin:
        return content + chance.randbytes(3)
    one, other = chance.randrange(begin, size), chance.randrange(begin, size)
    length = min(chance.choice((1, 2, 4, 8, 64, size)), size - max(one, other))
    action = chance.randrange(9)
    changed = bytearray(content)
    if action == 0:
        return content[:one]
    if action == 1:
        return content + (chance.randbytes(length) if chance.random() < 0.5 else bytes(length))
    if action in (2, 3):
        changed[one : one + length] = (b"\0" if action == 2 else b"\xff") * length
    elif action == 4:  # one range over another
        changed[one : one + length] = content[other : other + length]
    elif action == 5:  # a range twice
        changed[one:one] = content[one : one + length]
    elif action == 6:
        del changed[one : one + length]
    else:
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.randrange(begin, size)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def dumped(value: Any) -> str:
    """JSON, with what only a forger writes."""
    text = json.dumps(value)
    for name, instead in ((DEEP, "[" * 5000 + "]" * 5000), (LONG, "1" * 5000), (NAN, "NaN")):
        text = text.replace(f'"{name}"', instead)
    return text


def changed(chance: random.Random, document: Any, odd: list[Any] = ODD, times: int = 1) -> Any:
    """A copy of a document of mappings and lists with other values, keys or entries in `times` places."""
    document = copy.deepcopy(document)
    for _ in range(times):
        places = list(_places(document))
        if not places:
            return chance.choice(odd)
        inner, key = chance.choice(places)
        action = chance.randrange(10)
        if action == 0:
            del inner[key]
        elif action == 1 and isinstance(inner, dict):
            inner[chance.choice(("more", "", "é", f"{key}x", "\0"))] = inner[key]
        elif action == 1:
            inner.append(inner[key])
        elif action == 2:  # a value from elsewhere in the document
            where, other = chance.choice(places)
            inner[key] = copy.deepcopy(where[other])
        elif action == 3:  # of another form
            value = inner[key]
            inner[key] = chance.choice((str(value), [value], {"x": value}))
        elif action in (4, 5) and type(inner[key]) in (int, float):  # near, so that it passes more checks
            inner[key] = chance.choice((inner[key] + 1, inner[key] - 1, inner[key] * 2, -inner[key]))
        elif action in (4, 5) and isinstance(inner[key], bool):
            inner[key] = not inner[key]
        else:
            inner[key] = copy.deepcopy(chance.choice(odd))
    return document


def _places(document: Any) -> Any:
    """Each (container, key). Of long lists and mappings the first entries, so that others are found, too."""
    entries = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in list(entries)[:40]:
        yield document, key
        yield from _places(value)
