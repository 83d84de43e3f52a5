"""Tables of what benchmarks/engine.py measured, from its files alone."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import break_even
import encoders

from fineprune._files import write_json, write_text

DTYPES = ("float32", "bfloat16", "int8")


def write(out: Path, results: Path) -> None:
    """engine.{json,md}, engine_break_even.{json,md} and engine_roofline.{json,md}, of what there is."""
    results.mkdir(parents=True, exist_ok=True)
    cases = _read(out.glob("case-*.json"))
    if cases:
        _write(results / "engine", cases, case_table(cases))
    sweep = _read(out.glob("break-even-*.json"))
    if sweep:
        _write(results / "engine_break_even", sweep, break_even_table(sweep))
    if (out / "roofline.json").is_file():
        found = json.loads((out / "roofline.json").read_text())
        _write(results / "engine_roofline", found, roofline_table(found))


def case_table(cases: list[dict[str, Any]]) -> str:
    """A line for each case: torch's milliseconds, and how many times faster the others are."""
    cases = sorted(cases, key=_order)
    names = [name for name in encoders.Peers.names[1:] if any(name in case["peers"] for case in cases)]
    head = ["shape", "zeros", "batch x length", "threads", "torch, ms", *names]
    rows = []
    for case in cases:
        timings = case["peers"]
        ratios = [f"{timings[name]['ratio']:.1f}" if name in timings else "-" for name in names]
        about = [case["shape"], f"{1 - case['density']:.0%}", case["case"], str(case["threads"])]
        rows.append([*about, f"{timings['torch']['milliseconds']:.1f}", *ratios])
    worst = {
        name: max(case["peers"][name]["error"] for case in cases if name in case["peers"]) for name in names
    }
    errors = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
    missing = {name: why for case in cases for name, why in case["missing"].items() if name not in worst}
    lines = [
        _table(head, rows),
        "",
        f"{_machine(cases)} Largest errors, relative to the largest output: {errors}.",
    ]
    lines += [f"Not run: {name} ({why})." for name, why in missing.items()]
    return "\n".join(lines)


def break_even_table(cases: list[dict[str, Any]]) -> str:
    """The densities of the crossings, then the ratios they come from."""
    cases = sorted(cases, key=_order)
    shape, case, threads = (cases[0][name] for name in ("shape", "case", "threads"))
    cases = [
        each for each in cases if (each["shape"], each["case"], each["threads"]) == (shape, case, threads)
    ]
    found = break_even.crossings(cases)
    dense = [name for name in break_even.DENSE if any(name in row for row in found.values())]
    said = {None: "never faster", 1.0: "always faster"}
    rows = []
    for engine, row in found.items():
        cells = [said.get(row[name], f"{row[name] or 0:.0%}") if name in row else "-" for name in dense]
        rows.append([engine, *cells])
    names = list(dict.fromkeys(name for each in cases for name in each["peers"] if name != "torch"))
    ratios = [
        [
            f"{each['density']:.0%}",
            *(f"{each['peers'][name]['ratio']:.2f}" if name in each["peers"] else "-" for name in names),
        ]
        for each in cases
    ]
    crossed = _table(["dense:", *dense], rows)
    title = f"Times torch's speed by density ({shape}, {case}, {threads} threads):"
    return "\n".join([crossed, "", title, "", _table(["density", *names], ratios), "", _machine(cases)])


def roofline_table(found: dict[str, Any]) -> str:
    """What the core does, then each matrix."""
    core = found["core"]
    speeds = [f"{dtype} {core[dtype]:.0f}" for dtype in DTYPES if dtype in core]
    loads = [f"{core[f'load{size}']:.0f} from {size:,} KB" for size in (16, 256, 8192)]
    head = ["rows x columns", "zeros", "dtype", "GFLOP/s", "of peak", "its loads, GB/s"]
    rows = []
    for row in found["rows"]:
        cells = [f"{row['rows']} x {row['columns']}", f"{1 - row['density']:.0%}", row["dtype"]]
        cells += [f"{row['rate']:.0f}", _share(row["rate"], core.get(row["dtype"]))]
        rows.append([*cells, f"{row['loads']:.0f}"])
    about = f"The core, GFLOP/s: {', '.join(speeds)}; loads, GB/s: {', '.join(loads)}."
    return "\n".join([about, "", _table(head, rows), "", _machine([found], "Best")])


def _share(rate: float, peak: float | None) -> str:
    return "-" if peak is None else f"{rate / peak:.0%}"


def _order(case: dict[str, Any]) -> tuple[Any, ...]:
    batch, length = map(int, case["case"].split("x"))
    return case["shape"], -case["density"], case["threads"], batch, length


def _read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return sorted((json.loads(path.read_text()) for path in paths), key=_order)


def _machine(cases: list[dict[str, Any]], what: str = "Medians") -> str:
    """Every machine that the numbers come from."""
    seen = []
    for case in cases:
        here = case["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
        named = f"{here['processor']} ({here['levels'][0] if here['levels'] else 'no engine'}), {versions}"
        if named not in seen:
            seen.append(named)
    rounds = sorted({case["rounds"] for case in cases})
    return f"{what} of {' or '.join(map(str, rounds))} interleaved rounds; {'; '.join(seen)}."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(path: Path, found: Any, table: str) -> None:
    write_json(path.with_suffix(".json"), found)
    write_text(path.with_suffix(".md"), table + "\n")
    print(table)
