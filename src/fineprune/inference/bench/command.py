"""Run `fineprune bench` from the command line; slow imports happen inside the call."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fineprune.errors import FinepruneError

if TYPE_CHECKING:
    from rich.table import Table

    from fineprune.inference.bench.measure import Bench
    from fineprune.pruning.latency import LatencyTable


def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a model folder.")],
    against: Annotated[
        str | None, typer.Option(metavar="DIR_OR_NAME", help="Time this model too: a folder, or a hub name.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Texts at once.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a text.")] = 128,
    threads: Annotated[int | None, typer.Option(help="Threads of every peer; as many as torch uses.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each is timed, in turns.")] = 11,
    table: Annotated[
        bool, typer.Option("--table", help="Time fewer heads and neurons, for pruning by budget=latency.")
    ] = False,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="Only this runtime (and torch, without --table); may be given again."),
    ] = None,
    round_to: Annotated[
        int, typer.Option(help="With --table: numbers of neurons are multiples of this.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Time a model: the sparse engine beside torch and the other runtimes that are installed.

    Ctrl-C after three rounds ends it with what was measured, and exit code 130.
    """
    if table:
        if against is not None:
            raise FinepruneError("bench: --against goes without --table, which times one model")
        _tables(folder, (batch, length, threads, rounds), runtime or [], round_to, as_json)
        return
    if round_to != 1:
        raise FinepruneError("bench: --round-to goes with --table")
    from fineprune.inference.bench.measure import bench_folder

    done = bench_folder(folder, against, batch, length, threads, rounds, _say, runtime or [])
    # First: a pipe that prints may have ended at the same Ctrl-C.
    of_run = (folder / "results.json").is_file()
    kept = _keep(done) if of_run and not runtime else None
    if as_json:
        print(json.dumps(done.to_dict(), allow_nan=False))
    else:
        _print(done)
        if kept is not None:
            print(f"kept for inspect and report: {kept}")
        elif of_run and runtime:
            print("not kept for inspect and report, which want all runtimes: leave --runtime out")
    if done.stopped:
        raise typer.Exit(130)


def _tables(
    folder: Path, sizes: tuple[int, int, int | None, int], runtimes: list[str], round_to: int, as_json: bool
) -> None:
    """Measure tables of times, print them, and write them to the folder."""
    from rich.console import Console

    from fineprune.inference.bench.latency import measure_tables

    done = measure_tables(folder, runtimes, *sizes, round_to, _say)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not as_json:  # first: a folder that cannot be written costs none of them
        for found in done.tables:
            console.print(_times_by_units(found))
    written = []
    for found in done.tables:
        path = folder / f"latency-{found.runtime.lower().replace(' ', '-')}.json"
        found.save(path)
        written.append(path)
    if as_json:
        skipped = [entry._asdict() for entry in done.skipped]
        print(json.dumps({"tables": list(map(str, written)), "skipped": skipped}))
    else:
        for path in written:
            console.print(f"for pruning.budget=latency: pruning.latency_table={path}")
        for entry in done.skipped:
            console.print(f"not run, {entry.what}: {entry.why}")
    if not written:
        raise typer.Exit(1)


def _times_by_units(found: "LatencyTable") -> "Table":
    title = (
        f"{found.runtime}, {found.batch} x {found.length} tokens, {found.threads} threads: "
        f"{found.dense_ms:.2f} ms, {found.rest_ms:.2f} of them in no head or neuron; ms of one layer's"
    )
    table = _table(title, "", "left", "measured", "fitted")
    for part, times in (("heads", found.attention), ("neurons", found.feed_forward)):
        curve = found.fits.get("attention" if part == "heads" else "feed_forward")
        for units, ms in times.items():
            if curve is not None:
                table.add_row(part, f"{units:,}", f"{ms:.3f}", f"{curve(units):.3f}")
    return table


def _say(line: str) -> None:
    """Print a line of progress: on stderr, since --json has stdout."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _keep(done: "Bench") -> Path | None:
    """Write the measurements to the folder of the run, for `inspect` and the report; return the file's path.

    Return None, after a line on stderr, if it cannot be written.
    """
    from fineprune._files import write_json
    from fineprune.inference.bench import BENCH

    path = done.folder / BENCH
    try:
        write_json(path, done.to_dict())
    except (FinepruneError, OSError) as error:  # whatever it is, the table is printed
        print(f"fineprune: {error}; it is not kept", file=sys.stderr)
        return None
    return path


def _print(done: "Bench") -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    here = done.machine
    levels = f"engine levels {', '.join(here['levels'])}" if here["levels"] else "no engine was built"
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    console.print(f"{here['processor']}, {here['cores']} cores, {here['threads']} threads; {levels}")
    console.print(versions)
    console.print(
        f"{done.folder}: density {done.density:.2%} of the stored matrices, "
        f"{done.file_bytes / 1e6:.1f} MB of weights on disk"
    )
    console.print(_times(done))
    if done.loadings:
        console.print(_memory(done))
    for entry in done.notes:
        console.print(f"note, {entry.what}: {entry.why}")
    for entry in done.skipped:
        console.print(f"not run, {entry.what}: {entry.why}")


def _times(done: "Bench") -> "Table":
    title = f"{done.batch} x {done.length} tokens, medians of {done.rounds} interleaved rounds"
    table = _table(title, "", "ms", "times torch's speed", "middle half", "largest error")
    for row in done.rows:
        name = row.peer if row.model is None else f"{row.peer} ({row.model})"
        timing = row.timing
        error = f"{row.error:.1e}" + (" WRONG" if row.wrong else "")
        spread = f"{timing.low:.2f} - {timing.high:.2f}"
        table.add_row(name, f"{timing.milliseconds:.2f}", f"{timing.ratio:.2f}", spread, error)
    return table


def _memory(done: "Bench") -> "Table":
    title = "a fresh process each: seconds to load, and MB of resident memory"
    table = _table(title, "", "seconds", "loaded", "after one answer", "whole process")
    for entry in done.loadings:
        sizes = (f"{size:.1f}" for size in (entry.loaded, entry.answered, entry.process))
        table.add_row(entry.way, f"{entry.seconds:.2f}", *sizes)
    return table


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
