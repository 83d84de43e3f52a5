"""The rooms of the package: who imports whom, and where the names of methods are written."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fineprune.config import METHODS, RENAMED

SOURCE = Path(__file__).resolve().parents[1] / "src"
RUNTIME = SOURCE.parent / "runtime" / "src"

ROOMS = (
    "errors _distillation _engine_errors _extras _files _messages _methods _padding _text_files "
    "_transformers_import _transformers_output _validation _version _warnings structure",
    "config",
    "pruning",
    "checkpoint",
    "inference",
    "tasks",
    "training.distillation",
    "training.host",
    "training.run",
    "study",
    "study.figures",
    "study.frontier",
    "study.report",
    "study.runner study.command study.report.command study.frontier.command study.demo_command",
    "cli __main__",
)
"""A room may import the rooms above it and itself. A longer name goes before the room that it is in."""

METHOD_NAMES = {
    "_methods.py": "the table",
    "config.py": "the default",
    "checkpoint/legacy_import.py": "the older scripts' names, which are theirs",
    "pruning/masked_weight.py": "a buffer has the name of a method",
    "pruning/calibration/calibrate.py": "the baseline of a cut without labels has the same name",
    "study/figures/weights.py": "the two panels that the paper shows come first",
    "study/paper_claims.py": "the paper's statements about single methods",
    "training/run/demo.py": "the method of the demo",
}
"""Files outside pruning/methods that name a method in code, and why. Must be exact."""


class Arrow(NamedTuple):
    """One module imports another; the line of the first such import."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Return the files below `root` by dotted name; a package has the name of its folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, module: str, package: bool, known: set[str]) -> Iterator[tuple[str, int]]:
    """Yield each imported module with its line, wherever the import is.

    The parent packages that an import executes as well are not counted.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + package]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield inside if inside in known else base, node.lineno


def arrows(root: Path) -> list[Arrow]:
    """Return the imports between the modules below `root`, each pair once."""
    files = modules(root)
    found: dict[tuple[str, str], int] = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for target, line in imported(tree, module, path.name == "__init__.py", set(files)):
            if target in files:
                found.setdefault((module, target), line)
    return [Arrow(*pair, line) for pair, line in found.items()]


def circles(found: list[Arrow]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not, each sorted by name."""
    targets: dict[str, set[str]] = {}
    for arrow in found:
        targets.setdefault(arrow.source, set()).add(arrow.target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in targets.get(waiting.pop(), set()) - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    reach = {module: reached(module) for module in targets}
    groups = {
        tuple(sorted(other for other in reach[module] if module in reach.get(other, ())))
        for module in targets
        if module in reach[module]
    }
    return sorted(map(list, groups))


def room(module: str) -> int:
    """Return the place of a module's room in `ROOMS`; `fineprune` itself is above every room.

    Raises:
        LookupError: for a module in no room.
    """
    if module == "fineprune":
        return len(ROOMS)
    inside = module.removeprefix("fineprune.")
    matches = [
        (len(name), place)
        for place, names in enumerate(ROOMS)
        for name in names.split()
        if f"{inside}.".startswith(f"{name}.")
    ]
    if not matches:
        raise LookupError(f"{module} is in no room: add it to ROOMS of tests/test_house.py")
    return max(matches)[1]


def test_rooms_import_only_the_rooms_above_them_and_in_no_circle():
    found = arrows(SOURCE)
    climbs = [f"{arrow} (line {arrow.line})" for arrow in found if room(arrow.target) > room(arrow.source)]
    assert not climbs, "imports that climb:\n" + "\n".join(sorted(climbs))
    assert circles(found) == []


def test_the_runtime_has_no_circle_and_needs_no_fineprune():
    assert circles(arrows(RUNTIME)) == []
    files = modules(RUNTIME)
    for module, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for target, line in imported(tree, module, path.name == "__init__.py", set(files)):
            assert target.partition(".")[0] not in ("fineprune", "torch", "transformers"), f"{path}:{line}"


def test_methods_are_named_in_their_table_and_nowhere_else():
    names = {*METHODS, *RENAMED}
    found = set()
    for path in sorted((SOURCE / "fineprune").rglob("*.py")):
        inside = path.relative_to(SOURCE / "fineprune").as_posix()
        constants = (
            node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
        )
        if not inside.startswith("pruning/methods/") and names & {
            value for value in constants if isinstance(value, str)
        }:
            found.add(inside)
    assert found == set(METHOD_NAMES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import p.a", {"p.a"}),
        ("def f():\n    from p import a", {"p.a"}),
        ("from p.a import thing", {"p.a"}),
        ("if TYPE_CHECKING:\n    import p.a as b", {"p.a"}),
        ("from . import a", {"p.a"}),
        ("from .a import thing", {"p.a"}),
        ("from p import thing", {"p"}),
        ("import os", {"os"}),
    ],
)
def test_every_kind_of_import_is_seen(text, expected):
    assert {target for target, _ in imported(ast.parse(text), "p.b", False, {"p", "p.a", "p.b"})} == expected


def test_circles_are_found(tmp_path):
    for name, text in {"a": "import b", "b": "import c\nimport d", "c": "import a", "d": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert circles(arrows(tmp_path)) == [["a", "b", "c"]]


def test_the_longest_name_of_a_room_decides():
    assert (
        room("fineprune.study.rows") < room("fineprune.study.figures.style") < room("fineprune.study.runner")
    )
    assert room("fineprune.pruning") == room("fineprune.pruning.methods.l0") < room("fineprune.cli")
    with pytest.raises(LookupError, match=r"fineprune\.cellar is in no room"):
        room("fineprune.cellar")
