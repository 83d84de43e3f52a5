"""Measure a model's speed and memory in the engine and other runtimes, for `fineprune bench`."""

import contextlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fineprune._messages import choose, one_line
from fineprune._transformers_output import quiet
from fineprune.checkpoint.loading import OpenedModel, open_model
from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.inference.bench import resident_memory
from fineprune.inference.bench.peers import PEERS, Job, Peer, Run, missing
from fineprune.inference.bench.resident_memory import Loading
from fineprune.inference.bench.timing import Stopped, Timing, compare, interleave, machine, silent
from fineprune.pruning.summary import summary
from fineprune_runtime import dtypes

BASE = next(iter(PEERS))


class Row(NamedTuple):
    """The time and the error of one peer with one model."""

    peer: str
    model: str | None
    """None: the model in question; else the name of the one it is compared with."""
    timing: Timing
    error: float
    """The largest difference of its answers from torch's on the same weights, over the largest answer."""
    wrong: bool
    """The error is larger than the peer's precision explains."""


class Left(NamedTuple):
    """A measurement that is missing, or not as expected, with the reason."""

    what: str
    why: str


class Bench(NamedTuple):
    """All measurements of one call of `fineprune bench`."""

    folder: Path
    density: float
    file_bytes: int
    """The model's weights on disk."""
    batch: int
    length: int
    rounds: int
    machine: dict[str, Any]
    rows: list[Row]
    loadings: list[Loading]
    skipped: list[Left]
    notes: list[Left]
    stopped: bool
    """Ctrl-C ended the measurement."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; nan and infinity become null."""
        rows = [
            row._asdict() | {"timing": row.timing._asdict(), "error": _finite(row.error)} for row in self.rows
        ]
        parts = {
            name: [entry._asdict() for entry in getattr(self, name)]
            for name in ("loadings", "skipped", "notes")
        }
        return self._asdict() | {"folder": str(self.folder), "rows": rows} | parts


class _Built(NamedTuple):
    runs: dict[str, Run]
    errors: dict[str, float]
    skipped: list[Left]
    notes: list[Left]


def bench_folder(
    folder: str | Path,
    against: str | None = None,
    batch: int = 1,
    length: int = 128,
    threads: int | None = None,
    rounds: int = 11,
    say: Callable[[str], None] = silent,
    runtimes: Sequence[str] = (),
) -> Bench:
    """Time the peers of `peers.PEERS` on the model of a run or model folder, in turns.

    The inputs are `batch` texts of `length` random tokens. `against` is another folder, or a name on the hub,
    which all peers run as well; ratios are always to torch on the model of `folder`. `threads` is for
    all peers; None: as many as torch uses. `say` is called with a line about each step of the measurement.
    `runtimes` are the peers beside torch; all of them if there are none.

    Ctrl-C after three rounds or more ends the measurement, with the complete rounds and the memory that was
    measured before.

    Raises:
        FinepruneError: for numbers below 1, an unknown runtime, a model that does not exist, does not take
            single texts, or that torch cannot run, and where there is no room for temporary files.
    """
    for what, value in (("batch", batch), ("length", length), ("rounds", rounds), ("threads", threads)):
        if value is not None and value < 1:
            raise FinepruneError(f"{what} is {value}, expected a whole number of 1 or more")
    for runtime in runtimes:
        choose(runtime, PEERS, "runtime")
    chosen = {name: peer for name, peer in PEERS.items() if not runtimes or name in (BASE, *runtimes)}
    threads = threads or torch.get_num_threads()
    with torch_threads(threads), scratch_folder() as scratch:
        opened: dict[str | None, OpenedModel] = {None: open_model(folder)}
        if against is not None:
            opened[against] = _other(against, type(opened[None].model))
        models: dict[str | None, Any] = {name: each.model.float().eval() for name, each in opened.items()}
        inputs = example(models[None], batch, length)
        if against is not None:
            example(models[against], batch, length)
        built = {}
        for number, (name, model) in enumerate(models.items()):
            given = inputs if name is None else example(model, batch, length)
            built[name] = _build(chosen, Job(model, given, threads, scratch / str(number)), name, say)
        runs = {(peer, name): run for name, each in built.items() for peer, run in each.runs.items()}
        base: tuple[str, str | None] = (BASE, None)
        say(f"timing {len(runs)} in {rounds} rounds")
        stopped = False
        try:
            times = interleave(runs, rounds, say)
        except Stopped as stop:
            times, stopped = stop.times, True
        done = len(times[base])
        timings = compare(times, base)
        rows = []
        for (peer, name), timing in timings.items():
            error = built[name].errors[peer]
            rows.append(Row(peer, name, timing, error, not error <= PEERS[peer].tolerance))  # nan is wrong
        density = summary(models[None]).density
        kind = type(models[None]).__name__
    places = {name: each.place for name, each in opened.items()}
    loaded: list[Loading | Left] = []
    if stopped:
        loaded.append(Left("memory", f"stopped after {done} of {rounds} rounds"))
    else:
        say("measuring memory, in a fresh process each")
        try:
            in_dtypes = [dtype for dtype in dtypes() if not runtimes or f"engine {dtype}" in runtimes]
            for entry in _load(places, in_dtypes, kind, inputs["input_ids"], threads):
                loaded.append(entry)  # one by one: those before the stop stay
        except KeyboardInterrupt:
            loaded.append(Left("memory", f"stopped after {len(loaded)} ways of loading"))
            stopped = True
    return Bench(
        folder=Path(folder),
        density=density,
        file_bytes=sum(file.stat().st_size for file in Path(opened[None].place).glob("*.safetensors")),
        batch=batch,
        length=length,
        rounds=done,
        machine=machine(threads),
        rows=rows,
        loadings=[entry for entry in loaded if isinstance(entry, Loading)],
        skipped=[entry for each in built.values() for entry in each.skipped]
        + [entry for entry in loaded if isinstance(entry, Left)],
        notes=[entry for each in built.values() for entry in each.notes],
        stopped=stopped,
    )


def example(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Return `batch` texts of `length` random tokens, always the same ones, without padding.

    Raises:
        FinepruneError: for a model that does not take texts, or has fewer than `length` positions.
    """
    config = model.config
    if model.main_input_name != "input_ids" or config.is_encoder_decoder:
        raise FinepruneError(
            f"{type(model).__name__} takes more than a text, or something else; bench times encoders of texts"
        )
    most = _limit(model)
    if length > most:
        raise FinepruneError(f"length is {length}, and the model has positions for {most} tokens")
    text = config.get_text_config()
    ids = torch.randint(0, text.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    padding = getattr(text, "pad_token_id", None)
    if padding is not None:  # where positions are counted by it, a text has none
        ids[ids == padding] = (padding + 1) % text.vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def error_of(outputs: Any, expected: Any) -> float:
    """Return the largest difference in the outputs both have, relative to that output's largest number."""
    shared = [name for name in expected if name in outputs]
    if not shared:
        return math.nan
    worst = 0.0
    for name in shared:
        theirs, ours = torch.as_tensor(outputs[name]), torch.as_tensor(expected[name])
        if theirs.shape != ours.shape:
            return math.nan
        off = float((theirs.float() - ours).abs().max() / ours.abs().max().clamp_min(1e-30))
        worst = off if math.isnan(off) else max(worst, off)
        if math.isnan(worst):
            return worst
    return worst


def _build(peers: Mapping[str, Peer], job: Job, model: str | None, say: Callable[[str], None]) -> _Built:
    """Make the peers ready, one after another, and compare each one's first answer."""
    named = f" ({model})" if model else ""
    runs: dict[str, Run] = {}
    errors: dict[str, float] = {}
    skipped, notes = [], []
    expected: Any = None
    for name, peer in peers.items():
        why = missing(peer)
        try:
            if why is None:
                say(f"building {name}{named}")
                with quiet(), heard() as said:
                    run = peer.build(job)
                    outputs = run()
                expected = outputs if name == BASE else expected
                runs[name], errors[name] = run, error_of(outputs, expected)
                notes += [Left(f"{name}{named}", line) for line in said]
        except Exception as error:  # anything a peer raises: peers are not under test
            why = one_line(error)
            if name == BASE:
                shape = "{} x {}".format(*job.inputs["input_ids"].shape)
                raise FinepruneError(f"torch cannot run the model{named} on {shape} tokens: {why}") from error
        if why is not None:
            skipped.append(Left(f"{name}{named}", why))
    return _Built(runs, errors, skipped, notes)


def _load(
    places: dict[str | None, Path | str], dtypes: Sequence[str], kind: str, ids: Tensor, threads: int
) -> Iterator[Loading | Left]:
    """Measure every way of loading the model, and the other one in torch."""
    ways = [resident_memory.DENSE]
    ways += [f"{way} {dtype}" for way in ("accelerate", "runtime") for dtype in dtypes]
    asked: list[tuple[str, str | None]] = [(way, None) for way in ways]
    asked += [(resident_memory.DENSE, name) for name in places if name is not None]
    for way, name in asked:
        named = way if name is None else f"{way} ({name})"
        request = resident_memory.Request(way, str(places[name]), kind, ids.tolist(), threads)
        try:
            yield resident_memory.measure(request)._replace(way=named)
        except FinepruneError as error:
            yield Left(f"memory, {named}", str(error))


def _other(name: str, kind: Any) -> OpenedModel:
    """Open the model to compare with, from a folder, or from the hub with the head of `kind`."""
    try:
        return open_model(name, hub=True, hub_class=kind)
    except FinepruneError as error:
        raise FinepruneError(f"--against {error}") from error


def _limit(model: nn.Module) -> int:
    """Return the largest number of tokens of a text that the model has positions for."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions begin behind that of padding.
            limit = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return limit if limit > 0 else 1 << 30


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use `number` threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder, for what the other runtimes read."""
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:  # a full disk: tempfile tries each folder that it knows
        raise FinepruneError(
            f"no temporary folder can be written ({error.strerror}); make room, or name another "
            "place in TMPDIR"
        ) from error
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Yield a list that holds fineprune's warnings after the block; other packages' are dropped."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(entry.message) for entry in caught if issubclass(entry.category, FinepruneWarning)]


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
