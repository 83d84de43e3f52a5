"""The command line: parses, calls, prints. What takes seconds to import is imported in the call."""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from fineprune._messages import listing, printable
from fineprune._text_files import read_lines
from fineprune._warnings import show_as_lines
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.inference.bench.command import bench
from fineprune.study.command import study
from fineprune.study.demo_command import demo
from fineprune.study.frontier.command import frontier
from fineprune.study.report import leave_page
from fineprune.study.report.command import report
from fineprune.training.host.preemption import preemptible
from fineprune.training.run.calibrate_command import calibrate
from fineprune.training.run.recipe_command import recipe_app

if TYPE_CHECKING:
    from fineprune.training.run.recipe import Recipe

app = typer.Typer(
    help="Prune a transformer while you fine-tune it, and run it fast on a CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a model folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


app.command()(demo)


@app.command()
def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name that `fineprune recipes` lists.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example pruning.density=0.03.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/NAME OF THE RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that is in the folder.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--dry-run", help="Only load all, train a few steps, and estimate time and memory."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the dry run as JSON.")] = False,
) -> None:
    """Train and prune a model by a recipe, into a run folder."""
    from fineprune.training.run.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or [])
    if rehearse:
        if resume:
            raise FinepruneError("--dry-run: keeps nothing that could be resumed; leave --resume out")
        _dry_run(loaded, as_json)
        return
    if as_json:
        raise FinepruneError("--json: only with --dry-run; fineprune inspect RUN --json describes a run")
    place = out or Path("runs") / recipe.stem
    with preemptible():
        from fineprune.training.run.run_folder import claim

        claim(place, loaded, resume)  # what can be refused before torch is imported, which takes seconds
        loaded.task.check_files()
        from fineprune.training.host.processes import this_process
        from fineprune.training.run.train import run_recipe

        results = run_recipe(loaded, place, resume=resume)
        if not this_process().is_main_process:  # the first process speaks for all
            return
    from fineprune.training.run.densities import family_lines
    from fineprune.training.run.guidance import after, quicker
    from fineprune.training.run.inspection import headline_of, planned_time
    from fineprune_runtime import levels

    print(headline_of(results))
    hints = quicker(loaded.training.precision, levels(), results["seconds"])
    for line in (*planned_time(results), *family_lines(results, place), *after(results), *hints):
        print(printable(line))
    print(f"model: {place / 'model'}   results: {place / 'results.json'}")
    leave_page(place, print)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    data: Annotated[Path | None, typer.Option(help="Score this file instead of the recipe's own.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Score the model of this folder instead, for example a compact one.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Let the engine answer: float32, bfloat16 or int8. Without it torch does, in float32."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score the model of a run on its validation data or on another file of the same columns."""
    if not os.path.isfile(folder / "recipe.yaml"):
        within = folder.glob("*/recipe.yaml") if os.path.isdir(folder) else ()
        runs = sorted(path.parent.name for path in within)
        inside = f"; it holds the runs {listing(runs)}" if runs else ""
        raise FinepruneError(
            f"{folder}: no recipe.yaml in it{inside}; evaluate needs the folder of a run, whose recipe names "
            "the data, and scores the model of another folder with --model"
        )
    from fineprune.training.run.evaluate import evaluate_run

    scores = evaluate_run(folder, None if data is None else str(data), model, progress=True, dtype=dtype)
    if as_json:
        print(json.dumps(scores))
    else:
        width = max(10, *map(len, scores))
        for name, value in scores.items():
            print(f"{name:{width}} {value:.4f}")


@app.command()
def predict(
    folder: Folder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; else lines of --file.")
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option("--pair", help="The second text of each pair, as often as TEXT.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A text a line, a tab between the two of a pair; - for standard input."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Classify texts with the model of a run, find their entities, or answer TEXT out of --pair."""
    if (not texts) == (file is None):
        raise FinepruneError("predict: give texts, or --file FILE (- for standard input), and not both")
    first, second = (texts, pair or []) if texts else _texts(str(file))
    if second and len(second) != len(first):
        raise FinepruneError(f"predict: {len(first)} texts but {len(second)} of --pair; give one for each")
    from fineprune.tasks.batches import Asked
    from fineprune.tasks.kinds import kind_of
    from fineprune.tasks.opening import open_trained
    from fineprune.training.run.recipe import Recipe

    model, tokenizer, _ = open_trained(folder, need_tokenizer=True)
    kind = kind_of(model)
    if kind is None:
        raise FinepruneError(
            f"predict: {folder} holds a {type(model).__name__}, which has no head of a task; name a run"
        )
    asked = Asked(first, second)
    if (folder / "recipe.yaml").is_file():
        recipe = Recipe.load(folder / "recipe.yaml")
        asked = Asked(first, second, recipe.training.max_length, recipe.task)
    rows = kind.predict(model, tokenizer, asked)
    for line in map(json.dumps, rows) if as_json else map(printable, kind.lines(rows)):
        print(line)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this recipe.")] = None,
) -> None:
    """List the recipes that come with fineprune, for `fineprune run NAME`, or print one."""
    from fineprune.training.run.builtin_recipes import FOLDER, locate, packaged

    if name is not None:
        path = locate(name)
        if path.parent != FOLDER:
            raise FinepruneError(f"{name}: is a file, not the name of a recipe; fineprune recipes lists them")
        print(path.read_text(encoding="utf-8"), end="")
        return
    for known, about in packaged().items():
        print(f"{known:12} {about}")


@app.command()
def compact(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    values: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"],
        typer.Option(help="Type of the layers' matrices, sparse or not; float32 is exact."),
    ] = "float32",
    embeddings: Annotated[
        Literal["keep", "float16", "int8", "int4"], typer.Option(help="Type of the embedding tables.")
    ] = "keep",
    form: Annotated[
        Literal["compact", "dense"],
        typer.Option("--format", help="dense: plain zeros, which load without fineprune."),
    ] = "compact",
    base: Annotated[
        str | None, typer.Option(help="Store only what differs from this model, a folder or a hub name.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--vocabulary", help="Drop the tokens that no line of this file uses.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How an older program pruned its checkpoint, if it does not say."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="The final threshold of that older checkpoint.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a compact copy of a run, model folder or older checkpoint: only weights that are not zero."""
    from fineprune.checkpoint.packing import Packing
    from fineprune.training.run.convert import compact_folder, dense_folder, smaller_tables

    if form == "dense":
        if (values, embeddings, base, texts) != ("float32", "keep", None, None):
            raise FinepruneError("--format dense: takes no --values, --embeddings, --base or --vocabulary")
        done = dense_folder(folder, out, method, threshold)
    else:
        done = compact_folder(folder, out, Packing(values, embeddings), base, texts, method, threshold)
    if as_json:
        print(json.dumps(done._asdict() | {"folder": str(done.folder)}))
        return
    share = f"{done.bytes / done.dense_bytes:.1%} of {done.dense_bytes / 1e6:.1f} MB dense"
    print(f"{done.bytes / 1e6:.1f} MB of weights, {share}; density {done.density:.2%} of the stored matrices")
    if line := smaller_tables(done):
        print(line)
    print(f"outputs on a probe batch differ by {done.difference:.2g} of the largest; model: {done.folder}")


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    to: Annotated[Literal["onnx", "openvino"], typer.Option(help="The other runtime.")],
    int8: Annotated[bool, typer.Option("--int8", help="Quantize the weights to 8 bits.")] = False,
) -> None:
    """Write the model for another runtime, and compare the outputs; needs the extra `export`."""
    from fineprune.training.run.convert import export_folder

    done = export_folder(folder, out, to, int8)
    print(f"{done.bytes / 1e6:.1f} MB: zeros are stored in full, neither format leaves them out")
    print(f"outputs differ from PyTorch's by {done.difference:.2g} of the largest; model: {done.path}")


@app.command()
def inspect(
    folder: Folder,
    matrices: Annotated[bool, typer.Option("--matrices", help="List every matrix, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what remains of a model, layer by layer, its size, and one line about it to paste."""
    from fineprune.inference.break_even import advice, faster
    from fineprune.training.run.inspection import headline_of, inspect_folder, planned_time
    from fineprune.training.run.layer_bars import bars

    found = inspect_folder(folder)
    density = found.stats.density
    if as_json:
        print(json.dumps(found.to_dict() | {"engine_is_faster": faster(density)}))
        return
    if matrices:
        print(found.stats)
    for line in bars(found.layers, _can_print("▏█"), pictures=found.shrunk):
        print(line)
    print(found.flops)
    said = advice(density)
    if found.shrunk:
        smaller = "smaller matrices are less work in every runtime; `fineprune bench` says by how much"
        said = f"of the stored weights {density:.2%} are not zero: " + (
            said if any(faster(density).values()) else smaller
        )
    print(said)
    for text in found.warnings:
        print(printable(f"warning of the run: {text}"))
    stored = "packed" if found.packed else "zeros are stored in full"
    print(f"weights on disk: {found.bytes / 1e6:.1f} MB ({stored})")
    if found.packed_bytes is not None:
        sizes = ", ".join(f"{size / 1e6:.1f} MB as {values}" for values, size in found.packed_bytes.items())
        print(f"packed by `fineprune compact`: {sizes}")
    if found.results is not None:
        print("\n".join([headline_of(found.results), *planned_time(found.results)]))
    print(found.line)


app.command()(calibrate)
app.command()(bench)
app.command()(study)
app.command()(report)
app.command()(frontier)
app.add_typer(recipe_app, name="recipe")


def main() -> NoReturn:
    """Run the command line. Exit code 0: done; 2: the input cannot work, said in one line; 75: SIGTERM came,
    and the run can go on; 130: Ctrl-C did.
    """
    show_as_lines()
    try:
        app(standalone_mode=True)
    except FinepruneError as error:
        print(printable(f"fineprune: {error}"), file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        # 130 is what typer makes of KeyboardInterrupt.
        keeps = sys.argv[1:2] in (["run"], ["study"], ["demo"]) and "--dry-run" not in sys.argv
        if ended.code in (75, 130) and keeps:
            said = "fineprune: stopped; a run goes on with --resume, a study by the same command"
            with contextlib.suppress(OSError):  # of a pipe that ended at the same Ctrl-C
                print(said, file=sys.stderr, flush=True)
        raise
    sys.exit(0)


def _dry_run(recipe: "Recipe", as_json: bool) -> None:
    recipe.task.check_files()
    from fineprune.training.run.dry_run import dry_run, lines

    report = dry_run(recipe)
    for line in [json.dumps(report)] if as_json else map(printable, lines(report)):
        print(line)


def _texts(file: str) -> tuple[list[str], list[str]]:
    """Return the texts of a file, and the second ones where lines are pairs."""
    lines = read_lines(file)
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        warnings.warn(
            f"{file}: {len(blank)} of {len(lines)} lines are blank, the first is line {blank[0]}; "
            "each is answered as an empty text",
            FinepruneWarning,
            stacklevel=2,
        )
    rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) > 2 or len(row) != len(rows[0]):
            raise FinepruneError(
                f"{file}, line {number}: holds {len(row)} texts; every line must be one text, or two with a "
                "tab between them"
            )
    return [row[0] for row in rows], [row[1] for row in rows if len(row) == 2]


def _can_print(text: str) -> bool:
    """Whether what is printed may hold these letters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    main()
