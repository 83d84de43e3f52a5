"""Answer as torch does where torch is not: only fineprune_runtime and what it needs are installed.

python tests/runtime/alone.py OUT   OUT is what make_alone.py wrote
"""

import importlib.util
import json
import sys
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from fineprune_runtime import levels, load

ABSENT = ("torch", "transformers", "fineprune", "scipy", "sklearn", "seqeval", "pandas")
TOLERANCE = 1e-5  # of a score


def main(out: Path) -> None:
    """Exit with what differs, if anything does."""
    print("installed:", ", ".join(sorted(f"{one.name} {one.version}" for one in distributions())))
    if there := [name for name in ABSENT if importlib.util.find_spec(name)]:
        sys.exit(f"{', '.join(there)} can be imported here; this is for an environment without")
    expected = json.loads((out / "expected.json").read_text(encoding="utf-8"))
    for name, case in expected.items():
        model = load(out / name)
        found = model.predict(case["texts"], case["pairs"], max_length=case["max_length"])
        if difference := compare(found, case["answers"]):
            sys.exit(f"{name}: {difference}")
        print(f"{name}: {len(found)} answers as torch gives them, by {levels()[0]}; {model.nbytes:,} bytes")
    print("none of these was imported:", ", ".join(name for name in ABSENT if name not in sys.modules))


def compare(found: list[Any], expected: list[Any]) -> str:
    """The first difference in words; "" where there is none."""
    if len(found) != len(expected):
        return f"{len(found)} answers, expected {len(expected)}"
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, list):
            if difference := compare(one, other):
                return difference
            continue
        ours = asdict(one)
        apart = abs(ours["score"] - other["score"])
        if ours | {"score": 0} != other | {"score": 0} or not apart <= TOLERANCE:
            return f"answers {ours}, expected {other}"
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
