"""A real data set that every user already has: does this sentence describe the function of this name?

The rows are the functions of the Python packages installed beside fineprune. Their sources are
parsed, never imported, so the demo that trains on them needs neither a download nor a network.
"""

import ast
import importlib.util
import json
import os
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import NamedTuple

from fineprune.errors import FinepruneError

PACKAGES = ("numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers")
MOST_REPEATS = 2  # of one sentence, so that boilerplate does not dominate

_SKIPPED_FOLDER = re.compile(
    r"_?(tests?|testing|idle_test|test_suite|vendor|vendored|externals?|extern|third_party|bundled|generated)"
    r"|site-packages|dist-packages|__pycache__|lib2to3|pydoc_data|turtledemo|_antlr|array_api_\w+|.*-.*"
)
_SKIPPED_FILE = re.compile(r"test_.*|.*_tests?|.*testing.*|conftest|.*_pb2(_grpc)?|_?vendored.*|.*[-.].*")
_GENERATED = re.compile(r"(?i)auto-?generated|automatically generated|@generated|generated (by|from|auto)")
_WORD_BOUNDARY = re.compile(r"_+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])")
_SIGNATURE = re.compile(r"[\w.]+\([^()]*(\([^()]*\)[^()]*)*\)\s*(->.*|\.)?")
_END_OF_PROSE = re.compile(
    r">>>|\.\. |[-*+•] |[:@]\w+[ :]|\d+[.)] |```|\||\w+ ?\([^)]*\).{0,50}:|`?\w+`?: |(Input|Output) shape"
    r"|(Args|Arguments|Param(eter)?s?|Inputs?|Returns?|Yields|Raises|Outputs?|Examples?|Notes?|Usage|Shapes?)\s*:?$"
)
_MARKUP = (
    (r":[a-zA-Z][\w:+.-]*:`([^`<]+?)(\s*<[^`]*>)?`", r"\1"),  # :class:`text <target>`
    (r"\[\d+\]_?|\[#?\w+\]_", ""),  # a footnote
    (r"``(.+?)``", r"\1"),
    (r"\[`([^`\]]+)`\](\([^)]*\))?", r"\1"),  # [`Foo`], as transformers writes it
    (r"\[([^\]]+)\]\(\S+?\)", r"\1"),
    (r"`([^`<]+?)(\s*<[^`]*>)?`(__?)?", r"\1"),
    (r"(?<![\w*])(\*{1,2})(\w[^*]*?)\1(?!\w)", r"\2"),
    (r"[~!](?:\w+\.)*(\w+)", r"\1"),  # ~x.y.Foo
    (r"\s+([.,;:])(?=\s|$)", r"\1"),
)
_SENTENCE_END = re.compile(r"(?i)(?<!\be\.g|\bi\.e|\betc)(?<!\bvs|\bcf|\beq)[.!?](?=[\"')]*(\s|$))")
_UNUSABLE = re.compile(
    r"[^a-zA-Z]|.*([\\{}|<>@#$^`]|https?:|%[(s]|::|\b\w+__\w*|TODO|FIXME|XXX|[=+*/]{2}|[-~_.]{3}|[^ -~]|:$)"
    r"|(?i:see|refer to|for more|deprecated|docstring|alias|note|warning|override[sn]?|same as|copied|please"
    r"|implements? the|this (function|method|class) (is|should|must|will|has been)|example|internal)\b"
)


class Pair(NamedTuple):
    """One row: the words of a function's name, a sentence, and whether it is this function's own."""

    name: str
    sentence: str
    describes: bool


def build(train_size: int, validation_size: int, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs, half of each true, reproducible; no file and no sentence is in both."""
    return _build(_installed_roots(), train_size, validation_size, seed)


def write_jsonl(pairs: Iterable[Pair], path: str | os.PathLike[str]) -> None:
    """One JSON object a line: name, sentence and label ("describes" or "other"); all of them or no file."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    rows = [(pair.name, pair.sentence, "describes" if pair.describes else "other") for pair in pairs]
    lines = [json.dumps(dict(zip(("name", "sentence", "label"), row, strict=True))) + "\n" for row in rows]
    try:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _build(
    roots: Sequence[Path], train_size: int, validation_size: int, seed: int
) -> tuple[list[Pair], list[Pair]]:
    if train_size < 0 or validation_size < 0:
        raise FinepruneError(f"both sizes must be 0 or more, not {train_size} and {validation_size}")
    rng = random.Random(seed)
    files = _interleaved_files(roots, rng)
    validation = _collect(files, validation_size, rng, taken=())
    train = _collect(files, train_size, rng, taken={pair.sentence for pair in validation})
    if len(train) < train_size or len(validation) < validation_size:
        raise FinepruneError(
            f"the installed packages hold {len(train) + len(validation)} pairs, too few for {train_size} + "
            f"{validation_size}: ask for fewer, or install more of {', '.join(PACKAGES)}"
        )
    return train, validation


def _installed_roots() -> list[Path]:
    roots = [Path(sysconfig.get_path("stdlib"))]
    for package in PACKAGES:
        with suppress(ValueError):  # raised where a stand-in without a spec is in sys.modules
            spec = importlib.util.find_spec(package)
            roots += map(Path, (spec and spec.submodule_search_locations) or ())
    return roots


def _interleaved_files(roots: Sequence[Path], rng: random.Random) -> Iterator[Path]:
    """A shuffle of each root's source files, one file of each root in turn."""
    queues = [sorted(_source_files(root)) for root in roots]
    for queue in queues:
        rng.shuffle(queue)
    for files in zip_longest(*queues):
        yield from filter(None, files)


def _source_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _SKIPPED_FOLDER.fullmatch(name)]
        for name in names:
            if name.endswith(".py") and not _SKIPPED_FILE.fullmatch(name[:-3]):
                yield Path(folder, name)


def _collect(files: Iterator[Path], size: int, rng: random.Random, taken: Iterable[str]) -> list[Pair]:
    """Up to ``size`` pairs from the next files, half of them true, with no sentence of ``taken``."""
    repeats = Counter(dict.fromkeys(taken, MOST_REPEATS))
    true_pairs: set[tuple[str, str]] = set()
    own, other = list[Pair](), list[Pair]()
    while (len(own) < size - size // 2 or len(other) < size // 2) and (path := next(files, None)):
        functions = []
        for function in _functions(path):
            if function not in true_pairs and repeats[function[1]] < MOST_REPEATS:
                repeats[function[1]] += 1
                functions.append(function)
            true_pairs.add(function)
        rng.shuffle(functions)
        del functions[max(20, size // 50) :]  # no file dominates a small set
        swapped = min(max((len(functions) + len(own) - len(other)) // 2, 0), len(functions))
        own += [Pair(name, sentence, True) for name, sentence in functions[swapped:]]
        unused = [sentence for _, sentence in functions[:swapped]]  # so that each is used once, if possible
        for name, _ in functions[:swapped]:
            for pool in (unused, [sentence for _, sentence in functions]):
                if choices := [sentence for sentence in pool if (name, sentence) not in true_pairs]:
                    other.append(Pair(name, rng.choice(choices), False))
                    if pool is unused:
                        unused.remove(other[-1].sentence)
                    break
    pairs = own[: size - size // 2] + other[: size // 2]
    rng.shuffle(pairs)
    return pairs


def _functions(path: Path) -> Iterator[tuple[str, str]]:
    """The name in words and the first sentence of each documented function of a file."""
    try:
        source = path.read_text(encoding="utf-8")
        if _GENERATED.search(source, 0, 3000):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    statements: list[ast.AST] = [tree]
    while statements:
        node = statements.pop()
        for part in ("finalbody", "orelse", "handlers", "body"):
            statements += reversed(getattr(node, part, ()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (name := _split_name(node.name)):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and (sentence := _first_sentence(docstring)):
                yield name, sentence


def _split_name(name: str) -> str | None:
    """``_parseHTTP_header`` -> "parse http header"; None for ``__init__``, ``x`` and the like."""
    if (name.startswith("__") and name.endswith("__")) or not name.isascii():
        return None
    words = " ".join(_WORD_BOUNDARY.split(name.strip("_"))).lower()
    return words if len(words) > 1 else None


def _first_sentence(docstring: str) -> str | None:
    """The first sentence as plain English, or None where there is no such sentence."""
    lines = [line.strip() for line in docstring.strip().split("\n")]
    while lines and (not lines[0] or _SIGNATURE.fullmatch(lines[0])):
        del lines[0]
    prose = takewhile(lambda line: line and not _END_OF_PROSE.match(line), lines)
    text = " ".join(" ".join(prose).split())
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    end = _SENTENCE_END.search(text)
    text = (text[: end.end()] if end else text).strip()
    if text.count("(") != text.count(")") or len(re.sub("[a-zA-Z ]", "", text)) > 0.1 * len(text):
        return None
    return text if 4 <= len(text.split()) <= 40 and not _UNUSABLE.match(text) else None
