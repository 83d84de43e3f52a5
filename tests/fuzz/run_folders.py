"""Run folders: results, metrics, bench, recipe, config and weights.npz, and the page of such runs."""

import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz.mutation import MARK, changed, dumped, mangled
from study.reports import make_bench, make_record, make_run

from fineprune.errors import FinepruneError
from fineprune.study.report import make_report
from fineprune.study.study_folder import read_folder
from fineprune.training.run.mask_snapshot import NAME, Record
from fineprune.training.run.results import fastest, packed_of

_JSON = ("results.json", "bench.json", "model/config.json")


def make_folder(folder: Path) -> Path:
    """A run with all files that a run can leave."""
    run = make_run(folder / "t-movement-0.1-s0", record=make_record(16, 2, 0.1), density=0.1)
    make_bench(run, {"engine float32": 2.0, "torch": 1.0})
    (run / "model").mkdir()
    config = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    (run / "model" / "config.json").write_text(json.dumps(config))
    (run / "model" / "model.safetensors").write_bytes(b"12345")  # as many bytes as were timed
    return run


def forge(chance: random.Random, run: Path) -> list[str]:
    """Change one file of a run or several; their names."""
    names = chance.sample(
        (*_JSON, "results.json", "results.json", "recipe.yaml", "metrics.jsonl", NAME),
        chance.choice((1, 1, 1, 2)),
    )
    for name in dict.fromkeys(names):
        path = run / name
        content = path.read_bytes()
        times = chance.choice((1, 1, 2, 5))
        if chance.random() < 0.2:
            content = mangled(chance, content)
        elif name in _JSON:
            content = dumped(changed(chance, json.loads(content), times=times)).encode()
        elif name == "recipe.yaml":
            content = yaml.safe_dump(changed(chance, yaml.safe_load(content), times=times)).encode()
        elif name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            content = "\n".join(map(dumped, changed(chance, lines, times=times) or [])).encode()
        else:
            content = forged_arrays(chance, content)
        path.write_bytes(content)
    return names


def forged_arrays(chance: random.Random, content: bytes) -> bytes:
    """weights.npz with other arrays, names, headers or sizes in it."""
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        entries = {name: packed.read(name) for name in packed.namelist()}
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(list(entries))
        action = chance.randrange(7)
        if action == 0:
            del entries[name]
            if not entries:
                break
        elif action == 1:
            entries[chance.choice(("more.npy", "../x.npy", "é.npy", ".npy", "score.npy", "rows"))] = entries[
                name
            ]
        elif action == 2:
            entries[name] = mangled(chance, entries[name])
        elif action == 3:
            entries[name] = _forged_header(chance, entries[name])
        elif action == 4:
            entries[name] = entries[chance.choice(list(entries))]
        else:
            entries[name] = _bytes(_other(chance, _array(entries[name])))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", chance.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as packed:
        for name, data in entries.items():
            packed.writestr(name, data)
    return out.getvalue()


def _array(content: bytes) -> Any:
    """An entry's array; another one where the entry was forged before."""
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # by the kind of damage
        return np.zeros(3)


def _forged_header(chance: random.Random, content: bytes) -> bytes:
    """A header that claims another shape or type than the data have."""
    shape = chance.choice(((2**40,), (2**62, 4), (0,), (), (-1,), (3, 3), (10**9,), (0, 2**62)))
    kind = chance.choice(
        ("<f4", "<i8", "|b1", "<U9", "|O", "<f8", ">i4", "|u1", "|V8", "<M8[s]", "<U99999999")
    )
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content[-64:]


def _other(chance: random.Random, array: Any) -> Any:
    action = chance.randrange(6)
    flat = array.copy()
    if not flat.ndim:
        return flat[None]
    if action == 0 and flat.size and flat.dtype.kind in "iuf":
        choices = (0, 1, -1, 2**31 - 1, 2**62, np.nan, np.inf, -np.inf, 1e300, 3e38)
        with np.errstate(all="ignore"):
            value = (
                np.float64(chance.choice(choices)) if flat.dtype.kind == "f" else chance.choice(choices[:5])
            )
            flat.flat[chance.randrange(flat.size)] = np.array(value).astype(flat.dtype)
    elif action == 1:
        return flat[: len(flat) // 2]
    elif action == 2:
        return np.concatenate([flat, flat])
    elif action == 3:
        with np.errstate(all="ignore"):
            return (
                flat.astype(chance.choice(("f8", "i8", "i1", "?", "f2")))
                if flat.dtype.kind != "U"
                else flat[::-1]
            )
    elif action == 4:
        return flat[None]
    else:
        return np.zeros(chance.choice(((0,), (1,), (0, 2))), flat.dtype)
    return flat


def _bytes(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


class Runs:
    """`read_folder`, and what the runs say."""

    share = 8.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.run = make_folder(folder)
        self.honest = read_folder(self.run)[0]
        self.size = sum(path.stat().st_size for path in self.run.rglob("*") if path.is_file())

    def check(self, chance: random.Random, scratch: Path) -> str:
        run = shutil.copytree(self.run, scratch / "runs" / self.run.name)
        forge(chance, run)
        (found,) = read_folder(run)
        record = found.record
        told = (
            found.name,
            found.cell.name,
            found.timings,
            fastest(found.timings),
            packed_of(found.results or {}),
        )
        read_folder(run.parent)
        if found.results is not None:
            there = json.loads((run / "results.json").read_text(encoding="utf-8"))
            if repr(found.results) != repr(there):
                raise AssertionError("the results are not those of the file")
        if (found.results is None or record is None) and not found.notes:
            raise AssertionError(f"a part of the run is missing without a note: {told}")
        return "same" if found == self.honest else f"{'noted' if found.notes else 'other'}"


class Pages:
    """The page of a forged run beside an honest one: it has no element that a file brought."""

    share = 0.03
    seconds = 20.0  # pictures are slow

    def __init__(self, folder: Path) -> None:
        self.runs = Runs(folder)
        self.size = 20_000_000  # the pictures
        page = make_report(self.runs.run.parent, folder / "page.html")  # what the libraries load at first
        assert page.figures

    def check(self, chance: random.Random, scratch: Path) -> str:
        study = scratch / "runs"
        run = shutil.copytree(self.runs.run, study / self.runs.run.name)
        shutil.copytree(run, study / "t-magnitude-0.1-s0")
        forge(chance, run)
        try:
            made = make_report(study, scratch / "page.html")
        except FinepruneError:
            return "refused"
        if MARK in made.path.read_text(encoding="utf-8"):
            raise AssertionError("the page holds an element of a file")
        return "written"


class Arrays:
    """`Record.load` alone."""

    share = 10.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        make_record(16, 2, 0.1).save(folder)
        self.content = (folder / NAME).read_bytes()
        self.size = 60_000

    def check(self, chance: random.Random, scratch: Path) -> str:
        whole = chance.random() < 0.25
        (scratch / NAME).write_bytes(
            mangled(chance, self.content) if whole else forged_arrays(chance, self.content)
        )
        try:
            record = Record.load(scratch)
        except FinepruneError:
            return "refused"
        assert record is not None
        for matrix in record.matrices:
            if not 0 <= matrix.kept <= matrix.shape[0] * matrix.shape[1] or not 0 <= matrix.density <= 1:
                raise AssertionError(f"{matrix.name} keeps {matrix.kept} of {matrix.shape}")
            if (matrix.rows < 0).any() or (matrix.columns < 0).any():
                raise AssertionError(f"{matrix.name} keeps less than nothing")
        return "accepted"
