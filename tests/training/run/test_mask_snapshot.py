"""What a pruning run leaves for pictures: worked out by hand, written, read, and broken."""

import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fineprune import FinepruneError, PruningConfig, finalize, prepare, summary
from fineprune.training.run import mask_snapshot
from fineprune.training.run.mask_snapshot import Record, Recorder, matrices_of
from fineprune.training.run.train import run_recipe

WEIGHTS = ([[1.0, -2.0], [3.0, -4.0], [5.0, -6.0]], [[0.5, 1.5, 2.5], [-0.5, -1.5, -2.5]])
SCORES = ([[9.0, 8.0], [0.0, 1.0], [2.0, 7.0]], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(2, 3)
        self.down = nn.Linear(3, 2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block()])
        with torch.no_grad():
            self.layers[0].up.weight.copy_(torch.tensor(WEIGHTS[0]))
            self.layers[0].down.weight.copy_(torch.tensor(WEIGHTS[1]))


def pruned(method="movement"):
    """Half of each matrix is kept: by `SCORES` where the method has scores, else by magnitude."""
    pruner = prepare(Model(), PruningConfig(method, density=0.5, warmup=0, cooldown=1), 2)
    recorder = Recorder(pruner)
    with torch.no_grad():
        for target, scores in zip(pruner.targets, SCORES, strict=True):
            if target.masked.scores is not None:
                target.masked.scores.copy_(torch.tensor(scores))
            target.weight.mul_(10)  # what training makes of them
    pruner.step()
    pruner.step()
    return pruner, recorder


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Record, Path]:
    folder = tmp_path_factory.mktemp("record")
    taken = pruned()[1].take()
    taken.save(folder)
    return taken, folder


def same(one: Record, other: Record) -> bool:
    """Every number."""
    names = ("edges", "counts", "before", "after", "kept", "score")
    parts = ("rows", "columns", "picture")
    return (
        [(m.name, m.shape) for m in one.matrices] == [(m.name, m.shape) for m in other.matrices]
        and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
        and all(
            np.array_equal(getattr(mine, part), getattr(theirs, part))
            for mine, theirs in zip(one.matrices, other.matrices, strict=True)
            for part in parts
        )
    )


# -- what is taken ----------------------------------------------------------------------------


def test_the_sample(written):
    taken, _ = written
    assert taken.before.tolist() == [1, -2, 3, -4, 5, -6, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    assert taken.after.tolist() == [10, -20, 30, -40, 50, -60, 5, 15, 25, -5, -15, -25]
    assert taken.score.tolist() == [9, 8, 0, 1, 2, 7, 0, 1, 2, 3, 4, 5]
    assert taken.kept.tolist() == [True, True, False, False, False, True, *[False] * 3, *[True] * 3]


def test_the_matrices(written):
    up, down = written[0].matrices
    assert (up.name, up.shape, up.kept, up.density) == ("layers.0.up", (3, 2), 3, 0.5)
    assert (up.rows.tolist(), up.columns.tolist()) == ([2, 0, 1], [1, 2])
    assert up.picture.tolist() == [[255, 255], [0, 0], [0, 255]]
    assert (down.name, down.shape) == ("layers.0.down", (2, 3))
    assert (down.rows.tolist(), down.columns.tolist()) == ([0, 3], [1, 1, 1])


def test_the_histogram_is_of_what_remains(written):
    taken, _ = written  # 10, -20, -60, -5, -15, -25
    assert (taken.edges[0], taken.edges[-1], len(taken.edges)) == (-60, 10, mask_snapshot.BINS + 1)
    assert (taken.counts.sum(), taken.counts[0], taken.counts[-1]) == (6, 1, 1)


def test_a_few_large_weights_do_not_widen_the_bins():
    # Of 10,001 the share of 0.0005 on either side is five.
    counts, edges = mask_snapshot._histogram(np.array([*np.linspace(-1, 1, 9999), 50.0, 90.0]))
    assert edges[0] == pytest.approx(-1, abs=0.002)
    assert edges[-1] == pytest.approx(1, abs=0.002)
    assert counts.sum() == 10_001


def test_a_record_that_cannot_be_made_costs_no_run(files, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Record, "save", full)
    results = run_recipe(files.recipe(), tmp_path / "run", progress=False)
    assert results["steps"] == 12
    assert "no weights.npz" in caplog.text
    assert "No space left" in caplog.text


def test_magnitude_has_no_scores():
    taken = pruned("magnitude")[1].take()
    assert taken.score is None
    assert taken.kept[:6].tolist() == [False, False, False, True, True, True]


def test_l0_counts_gates_that_are_closed():
    pruner = prepare(Model(), PruningConfig("l0", penalty=1.0, warmup=0, cooldown=0, score_init="zero"), 2)
    recorder = Recorder(pruner)
    with torch.no_grad():
        pruner.targets[0].scores[0].fill_(-3.0)  # below -log 11, where gates close
    taken = recorder.take()
    assert taken.matrices[0].rows.tolist() == [0, 2, 2]
    assert taken.kept.tolist() == [False, False, *[True] * 10]
    assert taken.score[:2].tolist() == [-3, -3]
    gate = torch.sigmoid(pruner.targets[0].scores.detach()[2, 0]) * 1.2 - 0.1  # Eq. of the expected gate
    assert taken.edges[-1] == pytest.approx(5 * float(gate.clamp(0, 1)))  # the largest open weight


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_diverged_ends_all_the_same(value, tmp_path):
    pruner, recorder = pruned()
    with torch.no_grad():
        pruner.targets[0].weight[0, 0] = value
    recorder.take().save(tmp_path)
    taken = Record.load(tmp_path)
    assert taken.counts.sum() == 5
    assert not np.isfinite(taken.after[0])


def test_everything_is_pruned(tmp_path):
    pruner, recorder = pruned()
    for target in pruner.targets:
        target.masked.mask.zero_()
    recorder.take().save(tmp_path)
    taken = Record.load(tmp_path)
    assert taken.counts.sum() == taken.kept.sum() == sum(matrix.kept for matrix in taken.matrices) == 0


def test_a_large_model_is_sampled(monkeypatch):
    monkeypatch.setattr(mask_snapshot, "SAMPLE", 5)
    pruner, recorder = pruned()
    places = [place.tolist() for place in recorder._places]
    again = [place.tolist() for place in Recorder(pruner)._places]
    assert places == again  # as after a resume
    assert 1 <= sum(map(len, places)) <= 5
    flat = [np.ravel(weights) for weights in WEIGHTS]
    expected = [flat[which][place] for which, own in enumerate(places) for place in own]
    assert recorder.take().before.tolist() == pytest.approx(expected)


def test_pictures_of_large_matrices_are_coarse():
    mask = torch.zeros(300, 5, dtype=torch.bool)
    mask[299, 4] = True
    mask[:2] = True
    matrix = mask_snapshot._matrix("x", mask)
    assert matrix.picture.shape == (128, 5)
    # the borders are 300 i / 128 = 0, 2.3, …, 297.7: rows 0 and 1 are the first block, 297 to 299 the last
    assert matrix.picture[0].tolist() == [255] * 5
    assert matrix.picture[1:127].sum() == 0
    assert matrix.picture[127].tolist() == [0, 0, 0, 0, 85]  # one of three


# -- of a finished model ----------------------------------------------------------------------


def test_the_finished_model_has_the_same_matrices(written):
    found = matrices_of(finalize(pruned()[0].model))
    assert len(found) == 2
    assert same(replace(written[0], matrices=found), written[0])


def test_matrices_agree_with_the_summary():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    first, second = (block.attn.c_proj for block in model.transformer.h)
    second.weight = first.weight  # tied
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight[:, :6] = 0
    left = summary(model)
    found = matrices_of(model)
    assert [(one.name, one.shape, one.kept) for one in found] == [layer[:3] for layer in left.layers]
    assert len(found) == 7
    assert found[0].shape == (8, 24)  # Conv1D: inputs x outputs
    assert found[0].columns.tolist() == [0] * 6 + [8] * 18


def test_tied_weights_are_recorded_once():
    model = nn.Module()
    model.layers = nn.ModuleList([Block(), Block()])
    model.layers[1].up.weight = model.layers[0].up.weight
    pruner = prepare(model, PruningConfig("movement", density=0.5, warmup=0, cooldown=1), 2)
    taken = Recorder(pruner).take()
    assert [matrix.name for matrix in taken.matrices] == ["layers.0.up", "layers.0.down", "layers.1.down"]
    assert len(taken.before) == 18


# -- the file ---------------------------------------------------------------------------------


def test_it_is_read_as_it_was_written(written, names):
    taken, folder = written
    assert same(taken, Record.load(folder))
    assert names(folder) == {"weights.npz"}
    assert Record.load(folder / "nowhere") is None


def test_without_scores(tmp_path):
    pruned("magnitude")[1].take().save(tmp_path)
    assert Record.load(tmp_path).score is None


def broken(folder: Path) -> str:
    """What is said of the file."""
    with pytest.raises(FinepruneError) as error:
        Record.load(folder)
    told = str(error.value)
    assert str(folder / "weights.npz") in told
    assert told.endswith("; delete it")
    assert "\n" not in told
    return told


def test_every_cut_is_seen(written, tmp_path):
    data = (written[1] / "weights.npz").read_bytes()
    for end in range(0, len(data), 37):
        (tmp_path / "weights.npz").write_bytes(data[:end])
        broken(tmp_path)


@pytest.mark.filterwarnings("error")
def test_no_flipped_byte_changes_a_number(written, tmp_path):
    taken, folder = written
    data = (folder / "weights.npz").read_bytes()
    seen = 0
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        (tmp_path / "weights.npz").write_bytes(changed)
        try:
            found = Record.load(tmp_path)
            # Of a date, say; or of the size of the list at the end, whose last entry is lost.
            found = found if found.score is not None else replace(found, score=taken.score)
            assert same(taken, found), place
        except FinepruneError:
            seen += 1
    assert seen > len(data) / 6


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize("form", ["npz", "member", "file"])
def test_no_pickle_is_ever_run(written, tmp_path, form):
    path, mark = tmp_path / "weights.npz", tmp_path / "executed"
    arrays = arrays_of(written[1])
    if form == "npz":
        np.savez(path, **(arrays | {"names": np.array([Bomb(mark)] * 2, object)}))
    elif form == "file":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        np.savez(path, **{name: array for name, array in arrays.items() if name != "names"})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("names.npy", pickle.dumps(Bomb(mark)))
    broken(tmp_path)
    assert not mark.exists()
    if form == "file":
        pickle.loads(path.read_bytes())  # the bomb is one
        assert mark.exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, None) for name in ("names", "shapes", "rows", "pictures", "edges", "before", "kept")),
        ("names", lambda a: a[:1]),
        ("names", lambda a: np.arange(2)),
        ("shapes", lambda a: a[:1]),
        ("shapes", lambda a: a.ravel()),
        ("shapes", lambda a: -a),
        ("shapes", lambda a: a * [[1, 0]]),
        ("counts", lambda a: np.concatenate([a, np.zeros(9_000_000, a.dtype)])),  # deflates to a few kB
        ("shapes", lambda a: a.astype(float)),
        ("rows", lambda a: a[1:]),
        ("rows", lambda a: a + 1),
        ("columns", lambda a: np.concatenate([a, a])),
        ("pictures", lambda a: a[1:]),
        ("edges", lambda a: a[1:]),
        ("counts", lambda a: a.reshape(2, -1)),
        ("before", lambda a: a[1:]),
        ("after", lambda a: a.astype("U8")),
        ("kept", lambda a: a.astype(int)),
        ("score", lambda a: a[1:]),
        ("score", lambda a: a.astype(complex)),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_together(written, tmp_path, name, change):
    arrays = arrays_of(written[1])
    array = arrays.pop(name)
    if change is not None:
        arrays[name] = change(array)
    np.savez_compressed(tmp_path / "weights.npz", **arrays)
    broken(tmp_path)


def test_a_header_that_claims_more_than_the_file_holds(written, tmp_path):
    with (
        zipfile.ZipFile(written[1] / "weights.npz") as old,
        zipfile.ZipFile(tmp_path / "weights.npz", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name == "after.npy":  # as long as before, but for 2**40 weights
                header = data[: data.index(b"\n")]
                shape = header[header.index(b"(") : header.index(b")") + 1]
                data = data.replace(
                    shape + b", }" + b" " * 20, b"(1099511627776,), }" + b" " * (4 + len(shape)), 1
                )
            new.writestr(name, data)
    assert "its header says 4,398,046,511" in broken(tmp_path)


def test_another_file_of_numpy(tmp_path):
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    (tmp_path / "weights.npz").write_bytes(file.getvalue())
    broken(tmp_path)
