"""The sparse engine beside what else runs an encoder on a CPU, on the same weights.

    python benchmarks/engine.py                    all cases, an hour or more; continues where it was stopped
    python benchmarks/engine.py --shape base --density 0.03 --case 1x128 --threads 1    some of them
    python benchmarks/engine.py --break-even       the density at which sparse is as fast as dense
    python benchmarks/engine.py --roofline         the kernel's share of what this core can do
    python benchmarks/engine.py --table            tables of what is there, into benchmarks/results

Each case is a JSON file in --out. Peers take turns in interleaved rounds; a time is the median over the
rounds, a ratio the median of torch's time / the peer's time in the same round. Weights and masks are random,
with the same density in each matrix; embeddings and heads are left out.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import break_even
import encoders
import engine_tables
import roofline
import torch

from fineprune._files import write_json
from fineprune._messages import one_line
from fineprune.inference.bench.timing import compare, interleave, machine

ROOT = Path(__file__).parent.parent
CASES = ("1x16", "1x32", "1x128", "1x384", "8x16", "8x32", "8x128", "8x384")
DENSITIES = (0.10, 0.05, 0.03)


def measure(peers: encoders.Peers, names: list[str], shape: str, case: str, rounds: int) -> dict[str, Any]:
    """Times, ratios and errors of the peers that run, and why the others do not."""
    batch, length = map(int, case.split("x"))
    x = encoders.tokens(shape, batch, length)
    runs, errors, missing, expected = {}, {}, {}, None
    for name in names:
        try:
            run = peers.run(name, x)
            found = encoders.answer(run)
        except Exception as error:  # by peer: it is said in the file, and the others go on
            missing[name] = one_line(error)
            continue
        expected = found if name == "torch" else expected
        errors[name] = float((found - expected).abs().max() / expected.abs().max())
        runs[name] = run
    timings = compare(interleave(runs, rounds), "torch")
    rows = {name: timing._asdict() | {"error": errors[name]} for name, timing in timings.items()}
    return {"peers": rows, "missing": missing, "rounds": rounds}


def is_there(path: Path, names: list[str]) -> bool:
    """Whether a case was measured already, with these peers among others."""
    if not path.is_file():
        return False
    known = json.loads(path.read_text())
    return set(names) <= set(known["peers"]) | set(known["missing"])


def run_cases(arguments: argparse.Namespace) -> None:
    """Measure what is asked and not there yet; of earlier peers, what is not asked for again stays."""
    names = [
        name
        for name in encoders.Peers.names
        if name == "torch" or not arguments.only or name in arguments.only
    ]
    for shape in arguments.shape:
        for density in arguments.density:
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                paths = {
                    case: arguments.out / f"case-{shape}-{density:g}-{case}-{threads}.json"
                    for case in arguments.case
                }
                wanted = [case for case in paths if arguments.again or not is_there(paths[case], names)]
                peers = encoders.Peers(encoders.make(shape, density), threads) if wanted else None
                for case in wanted:
                    path = paths[case]
                    found = measure(peers, names, shape, case, arguments.rounds)
                    about = {"shape": shape, "density": density, "case": case, "threads": threads}
                    if path.is_file():
                        before = json.loads(path.read_text())
                        for key in ("peers", "missing"):
                            old = {name: value for name, value in before[key].items() if name not in names}
                            found[key] = old | found[key]
                    write_json(path, about | found | {"machine": machine(threads)})
                    print(line(about, found), flush=True)


def line(about: dict[str, Any], found: dict[str, Any]) -> str:
    """What a case gave, while one waits."""
    timings = found["peers"]
    ratios = "  ".join(f"{name} {timings[name]['ratio']:.1f}" for name in timings if name != "torch")
    where = f"{about['shape']} {about['density']:.0%} {about['case']} {about['threads']} threads"
    return f"{where}: torch {timings['torch']['milliseconds']:.1f} ms; {ratios}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    shapes = tuple(encoders.SHAPES)
    usual_shapes = [shape for shape in shapes if "tiny" not in shape]
    parser.add_argument("--shape", nargs="+", choices=shapes, default=usual_shapes)
    parser.add_argument("--density", nargs="+", type=float)
    parser.add_argument("--case", nargs="+", default=list(CASES), help="BATCHxLENGTH")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=encoders.Peers.names, help="these peers, and torch")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "engine")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--break-even", action="store_true")
    parser.add_argument("--roofline", action="store_true")
    parser.add_argument("--table", action="store_true", help="only make tables of what is there")
    arguments = parser.parse_args()
    sys.modules.setdefault("openvino_telemetry", None)  # it would report its use
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.table:
        engine_tables.write(arguments.out, arguments.results)
        return
    # Of --density each kind of run has its own default.
    usual = break_even.DENSITIES if arguments.break_even else DENSITIES
    arguments.density = arguments.density or list(usual)
    if arguments.break_even:
        break_even.run(arguments)
    elif arguments.roofline:
        roofline.run(arguments)
    else:
        run_cases(arguments)


if __name__ == "__main__":
    main()
