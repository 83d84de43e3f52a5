"""Write the JSON Schema of recipes for editors, and list every setting for the page of reference.

    python docs/recipe_schema.py

Types and defaults come from the dataclasses, descriptions from the strings below their fields, kinds of tasks
and methods from their tables. Allowed numbers and names are found by trying values: a class refuses others.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from sphinx.pycode import ModuleAnalyzer

from fineprune.config import METHODS, Distillation, PruningConfig, method_class
from fineprune.errors import FinepruneError
from fineprune.structure import DIMS, EVERYWHERE, UNITS
from fineprune.tasks.kinds import KINDS, task_config
from fineprune.tasks.named_tasks import TASKS
from fineprune.tasks.source import Source
from fineprune.training.run.builtin_recipes import SCHEMA
from fineprune.training.run.recipe import DistillationConfig, ModelConfig, Recipe
from fineprune.training.run.refine import RefineConfig
from fineprune.training.run.training_config import TrainingConfig

Json = dict[str, Any]

_FILES = {"train": "train.csv", "validation": "dev.csv"}
_MOST_NAMES = 9  # that the page of reference lists in the type
_NULL: Json = {"type": "null"}
_DENSITY: Json = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_BY_NAME = {
    "name": "A task that fineprune knows: its data set on the hub, columns, labels and metric.",
    "data_dir": "Only with name: the folder of its files, train and dev or validation, in place of the hub.",
}
_SEVERAL = "Of a recipe also a list, from high to low: a model is finished at each density, in one run."
_EARLIER = "Densities at which a model is finished before the run prunes on to that of the section pruning."
_DENSE = "Settings of a dense fine-tuning before the pruning, or a model that is fine-tuned already."
_METHODS = "Settings for each method, and for dense runs: they apply where the recipe chooses that method."


class Setting(NamedTuple):
    """One setting of a recipe, as the reference page shows it."""

    section: str
    """The section, such as "training"; "task (KIND)" where only one kind of task has the setting."""

    field: str
    type: str
    default: str
    description: str


@dataclass(frozen=True)
class Section:
    """A dataclass of settings."""

    name: str
    config: type
    valid: Json
    """Settings with which the class can be made, whichever other one is tried."""


def sections() -> list[Section]:
    """Return the sections of a recipe; `task` once for each kind, options once for each method with some."""
    cut = {"name": "minilm", "structure": {"attention": "head"}, "density": 0.5}
    options = {name: method_class(name).Options for name in METHODS}
    return [
        Section("model", ModelConfig, cut),
        *(Section(f"task ({kind.name})", kind.config, _FILES) for kind in KINDS),
        Section("training", TrainingConfig, {}),
        Section("pruning", PruningConfig, {}),
        *(Section(f"pruning.options ({name})", kind, {}) for name, kind in options.items() if fields(kind)),
        Section("distillation", DistillationConfig, {"teacher": "folder", "task": 1.0}),
        Section("refine", RefineConfig, {}),
    ]


def settings() -> list[Setting]:
    """Return every setting of a recipe, in the order of its sections; those of `dense` are `training`'s."""
    rows: dict[tuple[str, str], Setting] = {}
    for section in sections():
        for name, schema in _properties(section).items():
            shared = section.name.startswith("task") and name in {entry.name for entry in fields(Source)}
            if section.config is RefineConfig and name in {entry.name for entry in fields(TrainingConfig)}:
                continue
            place = "task" if shared else section.name
            default = json.dumps(schema["default"]) if "default" in schema else "required"
            row = Setting(place, name, _words(schema), default, schema["description"])
            rows.setdefault((place, name), row)
    kinds = " or ".join(json.dumps(kind.name) for kind in KINDS)
    rows["task", "kind"] = rows["task", "kind"]._replace(type=kinds, default=json.dumps(_usual_kind()))
    for name, about in _BY_NAME.items():
        rows["task", name] = Setting("task", name, "text", "null", about)
    order = [row.section for row in rows.values()]
    return sorted(rows.values(), key=lambda row: order.index(row.section))


def schema() -> Json:
    """Return the JSON Schema of a recipe."""
    made = {section.name: _object(section) for section in sections() if "options" not in section.name}
    kinds = {kind.name: made.pop(f"task ({kind.name})") for kind in KINDS}
    made["dense"] = _reference("training") | {"description": "A dense fine-tuning before the pruning."}
    names = [entry.name for entry in fields(Recipe) if entry.name != "earlier_densities"]
    in_order = {name: made.get(name, {}) for name in names} | {"task": _task(kinds)}
    partly = {name: {"anyOf": [_reference(name), _NULL]} for name in in_order}
    by_method = {"anyOf": [_closed(partly), _NULL]}
    in_order["model"] = {"anyOf": [{"type": "string"}, made["model"]], "description": _about(ModelConfig)}
    top = {name: _reference(name) for name in in_order}
    for name in ("pruning", "distillation", "dense", "refine"):
        top[name] = partly[name]
    top["dense"] = {"anyOf": [*partly["dense"]["anyOf"], {"type": "string"}], "description": _DENSE}
    top["model"] = top["model"] | {"required": ["name"]}  # of a section; a text has no settings
    top["earlier_densities"] = {"type": "array", "items": _DENSITY, "description": _EARLIER, "default": []}
    methods = _closed({name: _reference("of_method") for name in (*METHODS, "dense")})
    top["methods"] = {"anyOf": [methods, _NULL], "description": _METHODS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fineprune recipe",
        "description": "The model, the data, the training and the pruning of a run: fineprune run FILE",
        **_closed(top),
        "required": ["model", "task", "training"],
        "$defs": in_order | {f"task_{name}": kind for name, kind in kinds.items()} | {"of_method": by_method},
    }


def _task(kinds: dict[str, Json]) -> Json:
    """Return the schema of the section `task`: the settings of the kind that it names, directly or not."""
    usual, choices = _usual_kind(), []
    for kind, settings_of_kind in kinds.items():
        names = [name for name, values in TASKS.items() if values.get("kind", usual) == kind]
        cases: list[Json] = [{"properties": {"kind": {"const": kind}}, "required": ["kind"]}]
        if names:
            for name, about in _BY_NAME.items():
                allowed = {"enum": names} if name == "name" else {"type": ["string", "null"]}
                settings_of_kind["properties"][name] = allowed | {"description": about}
            cases.append({"properties": {"name": {"enum": names}}, "required": ["name"]})
        if kind == usual:
            cases.append({"not": {"anyOf": [{"required": ["kind"]}, {"required": ["name"]}]}})
        choices.append({"if": {"anyOf": cases}, "then": _reference(f"task_{kind}")})
    named = {"enum": list(TASKS), "description": _BY_NAME["name"]}
    known = {"kind": {"enum": list(kinds), "description": "The kind of the task."}, "name": named}
    section = {"type": "object", "properties": known, "allOf": choices}
    return {
        "anyOf": [{"enum": list(TASKS)}, section],
        "description": "The data, and the kind of the task.",
    }


@functools.cache
def _usual_kind() -> str:
    """Return the kind of a task that names none."""
    return task_config(_FILES).kind


def _object(section: Section) -> Json:
    return _closed(_properties(section)) | {"description": _about(section.config)}


def _closed(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _reference(name: str) -> Json:
    return {"$ref": f"#/$defs/{name}"}


def _about(kind: type) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


# -- one setting ------------------------------------------------------------------------------


def _properties(section: Section) -> Json:
    """Return the schemas of the settings of a section."""
    types = TypeAdapter(section.config).json_schema()["properties"]
    found = {}
    for entry in fields(section.config):
        made = _narrowed(section, entry.name, types[entry.name])
        found[entry.name] = made | {"description": _description(section.config, entry.name)}
        if entry.default is not MISSING:
            found[entry.name]["default"] = types[entry.name]["default"]
    if section.config is PruningConfig:
        several = {"type": "array", "items": _DENSITY, "minItems": 1}
        about, default = (found["density"][name] for name in ("description", "default"))
        found["density"] = {"anyOf": [_DENSITY, several], "description": f"{about} {_SEVERAL}"}
        found["density"]["default"] = default
        found["options"] |= {"anyOf": [_options(), _NULL]}
    if "structure" in found:
        found["structure"] |= _structure(nullable=section.config is ModelConfig)
    if section.config in {kind.config for kind in KINDS}:
        found["kind"] = {"const": found["kind"]["default"]} | found["kind"]
    return found


def _narrowed(section: Section, name: str, schema: Json) -> Json:
    """Return the schema of a setting with the numbers and names that the class takes."""

    def refusal(value: Any) -> str | None:
        try:
            section.config(**(section.valid | {name: value}))
        except FinepruneError as error:
            return str(error)
        return None

    branches = []
    for branch in schema.get("anyOf", [{k: v for k, v in schema.items() if k not in ("title", "default")}]):
        branches += _narrower(branch, refusal)
    if schema.get("default", MISSING) is None and _NULL not in branches and branches != [{}]:
        branches.append(_NULL)  # a setting that __post_init__ fills in
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _narrower(branch: Json, refusal: Callable[[Any], str | None]) -> Iterator[Json]:
    """Yield one type of a setting with its limits; a text beside a list that may be a single name."""
    kind = branch.get("type")
    if kind == "number":
        yield branch | _range(refusal)
    elif kind == "integer":
        least = next((value for value in range(-1, 9) if refusal(value) is None), -1)
        yield branch if least < 0 else branch | {"minimum": least}
    elif kind == "string" and "enum" not in branch:
        names = _choices(refusal("?"))
        yield branch | {"enum": names} if names else branch
    elif kind == "array" and branch.get("items") == {"type": "string"}:
        names = _choices(refusal(("?",)))
        item = {"type": "string", "enum": names} if names else {"type": "string"}
        yield branch | {"items": item}
        if refusal(names[0] if names else "?") is None:
            yield item
    else:
        yield branch


def _range(refusal: Callable[[Any], str | None]) -> Json:
    taken = {value: refusal(value) is None for value in (-1.0, 0.0, 0.5, 1.0, 1.5)}
    found = {}
    if any(taken.values()) and not taken[-1.0]:
        found["minimum" if taken[0.0] else "exclusiveMinimum"] = 0
    if taken[0.5] and not taken[1.5]:
        found["maximum" if taken[1.0] else "exclusiveMaximum"] = 1
    return found


def _choices(refusal: str | None) -> list[str]:
    """Return the names in the message of `_messages.choose`."""
    allowed = re.search(r": (?:did you mean .*\? )?allowed are (.+)$", refusal or "")
    return allowed[1].split(", ") if allowed else []


def _description(config: type, name: str) -> str:
    """Return the text below a field, in the class or one that it takes it from, on one line."""
    for kind in (*config.__mro__, *([Distillation] if config is DistillationConfig else [])):
        if lines := _documented(kind.__module__).get((kind.__qualname__, name)):
            return re.sub(r"\bNone\b", "null", " ".join(" ".join(lines).split()))
    raise LookupError(f"{config.__name__}.{name} has no description: write one below the field")


@functools.cache
def _documented(module: str) -> dict[tuple[str, str], list[str]]:
    return {} if module == "builtins" else ModuleAnalyzer.for_module(module).find_attr_docs()


def _options() -> Json:
    """Return the schema of the options of all methods together."""
    together: Json = {}
    for section in sections():
        if section.name.startswith("pruning.options"):
            together |= _properties(section)
    for option in together.values():
        del option["default"]  # each method has its own
    return _closed(together)


def _structure(nullable: bool) -> Json:
    """Return the schema of a structure: a unit of every matrix, or a unit for each part of a layer."""
    size = {"type": "integer", "minimum": 1}
    block = {"type": "array", "items": size, "minItems": 2, "maxItems": 2}
    share = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1}
    names = {"enum": list(DIMS)}
    both = {"type": "array", "items": names, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    parts: dict[str, Json] = {}
    for name, units in UNITS.items():
        unit = {"anyOf": [{"enum": [*EVERYWHERE, *units]}, block, *([both] if DIMS[0] in units else [])]}
        own = _closed({"unit": unit, "density": share}) | {"required": ["unit"]}
        parts[name] = {"anyOf": [*unit["anyOf"], own]}
    by_part = _closed(parts) | {"minProperties": 1}
    if nullable:  # of a model that is cut before it is trained
        return {"anyOf": [_NULL, by_part]}
    outer = {**by_part, "properties": by_part["properties"] | {"density": share}}
    levels = {"type": "array", "prefixItems": [outer, {"const": "element"}], "minItems": 2, "maxItems": 2}
    return {"anyOf": [{"enum": list(EVERYWHERE)}, block, by_part, levels]}


def _words(schema: Json) -> str:
    """Return the type of a setting in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_words(branch) for branch in schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        names = schema.get("enum", [schema.get("const")])
        return "name" if len(names) > _MOST_NAMES else " or ".join(map(json.dumps, names))
    if schema.get("type") == "array":
        items = schema.get("items") or {"anyOf": schema["prefixItems"]}
        return f"list of {_words(items)}"
    words = {"string": "text", "boolean": "true or false", "object": "mapping", "integer": "whole number"}
    kind = schema.get("type", "anything")
    return words.get(kind, kind)


def text() -> str:
    """Return the file of the schema."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8")
    print(SCHEMA)
