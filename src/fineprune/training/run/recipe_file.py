"""Read and write the YAML of a recipe, and apply overrides to what was read."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fineprune._engine_errors import engine_errors
from fineprune._messages import one_line
from fineprune._validation import check_keys
from fineprune.config import METHODS, PruningConfig
from fineprune.errors import FinepruneError
from fineprune_runtime.errors import EngineError
from fineprune_runtime.reading import check_plain, check_regular

# Bytes, and values with aliases written out: far beyond any recipe or study. PyYAML reads 30,000 in a second.
_LIMIT, _VALUES = 2**20, 30_000
_BRACKETS = 200  # that are open at once: the time that PyYAML takes grows with their square


class _Loader(yaml.SafeLoader):
    """Reads 2e-4 as a number, as YAML 1.2 does and as people write it, and refuses repeated keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                text = f"the key {key.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes = getattr(self, "_nodes", 0) + 1
        if self._nodes > _VALUES:
            raise yaml.YAMLError(f"it holds more than {_VALUES:,} values")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def read_yaml(path: Path, what: str) -> Any:
    """Return the content of a YAML file.

    Raises:
        FinepruneError: if it cannot be read or is not YAML; the message calls the file the `what`.
    """
    try:
        check_regular(path, _LIMIT)
        text = path.read_text(encoding="utf-8")
    except EngineError as error:
        raise FinepruneError(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FinepruneError(f"{path}: the {what} cannot be read ({reason})") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, where: object) -> Any:
    """Return the value of a YAML text; `where` names it in messages.

    Raises:
        FinepruneError: it is not YAML, or stands for more values than a setting can have.
    """
    if _deepest(text) > _BRACKETS:
        raise FinepruneError(f"{where}: more than {_BRACKETS} brackets are open at once")
    try:
        value = yaml.load(text, Loader=_Loader)
    except Exception as error:  # of Python itself for `!!int ''`, `!!timestamp 1` or the date 2020-13-45
        raise FinepruneError(f"{where}: not YAML ({one_line(error)})") from error
    with engine_errors():
        check_plain(value, where, _VALUES)
    return value


def _deepest(text: str) -> int:
    """Return the number of brackets that are open at once, those in quotes and comments included."""
    depth = most = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(0, depth - 1)
        most = max(most, depth)
    return most


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return `values` as YAML that `read_yaml` reads back, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def override(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return the sections of a recipe with `key=value` overrides applied, without its section `methods`.

    `methods` holds settings of each method, or of `dense`. Those of the method that the file or an override
    chooses replace the file's settings; overrides replace both.
    """
    by_method = values.pop("methods", None) or {}
    check_keys(by_method, (*METHODS, "dense"), "methods")
    result = copy.deepcopy(values)
    for text in overrides:
        _apply(values, text)
    if not by_method:
        return values
    pruning = values.get("pruning")
    chosen = str(pruning.get("method", PruningConfig.method)) if isinstance(pruning, dict) else "dense"
    sections = by_method.get(chosen) or {}
    if not isinstance(sections, Mapping):
        raise FinepruneError(f"methods.{chosen}: expected a mapping of sections, got {sections!r}")
    for section, settings in sections.items():
        before = result.get(section)
        merge = isinstance(before, dict) and isinstance(settings, dict)
        result[section] = before | settings if merge else settings
    for text in overrides:
        _apply(result, text)
    return result


def _apply(values: dict[str, Any], setting: str) -> None:
    """Set the value of one override in `values`, creating the sections above it."""
    key, equals, text = setting.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise FinepruneError(f"{setting!r}: overrides look like pruning.density=0.03")
    for part in parts[:-1]:
        inner = values.get(part)
        if inner is None:
            inner = values[part] = {}
        elif isinstance(inner, str) and part in ("model", "task"):
            inner = values[part] = {"name": inner}
        if not isinstance(inner, dict):
            raise FinepruneError(f"{setting!r}: {part} is {inner!r}, which has no settings in it")
        values = inner
    values[parts[-1]] = parse_yaml(text, repr(setting))
