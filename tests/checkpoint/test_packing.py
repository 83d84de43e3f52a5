"""Which weights are packed, what a manifest says of them, and that `verify` believes none of it."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from fineprune import FinepruneError, save_compact
from fineprune.checkpoint import packing
from fineprune.checkpoint.packing import PackedLinear, Packing, is_blob, manifest, pack_state, unpack, verify
from fineprune.pruning.targets import find_targets
from fineprune_runtime import codec


def blob(array, values="float32"):
    return torch.from_numpy(codec.encode(np.asarray(array, np.float32), values))


def sparse(rows=4, columns=8, seed=0):
    """One value in each row."""
    weight = torch.zeros(rows, columns)
    weight[range(rows), torch.randint(columns, (rows,), generator=torch.Generator().manual_seed(seed))] = 1.5
    return weight


class Net(nn.Module):
    """A table, a sparse layer, a dense one, and one that is tied to the table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 8)
        self.sparse = nn.Linear(8, 4)
        self.full = nn.Linear(8, 4)
        self.tied = nn.Linear(8, 4)
        self.tied.weight = self.table.weight
        self.norm = nn.LayerNorm(8)
        with torch.no_grad():
            self.sparse.weight.copy_(sparse())


@pytest.fixture
def state_file(tmp_path):
    """`state_file(state, pruned, kept, total)`: a file with its manifest."""

    def write(state, name="model.safetensors", manifest_of=None, **changes):
        pruned = [key for key, value in state.items() if is_blob(value)]
        headers = [codec.read_header(state[key].numpy()) for key in pruned]
        about = {
            "pruned": pruned,
            "kept": sum(header.kept for header in headers),
            "total": sum(int(np.prod(header.shape)) for header in headers),
        } | changes
        save_file(state, tmp_path / name, manifest(manifest_of or state, about))
        return tmp_path / name

    return write


def rewritten(file, change):
    """The same tensors under another manifest: `change` takes the manifest's text and returns one."""
    with safe_open(file, framework="pt") as opened:
        text = opened.metadata()["fineprune"]
    text = change(text)
    save_file(load_file(file), file, None if text is None else {"fineprune": text})
    return file


# ---- what is packed -------------------------------------------------------------------------------------


def test_sparse_matrices_are_packed_and_the_rest_is_as_it_was():
    net = Net()
    state, kept = pack_state(net, Packing())
    assert set(state) == set(net.state_dict())
    assert [key for key, value in state.items() if is_blob(value)] == ["sparse.weight"]
    assert torch.equal(unpack(state["sparse.weight"], (4, 8)), sparse())
    assert kept == {"pruned": ["sparse.weight"], "kept": 4, "total": 32}
    for key in set(state) - {"sparse.weight"}:
        assert torch.equal(state[key], net.state_dict()[key])


def test_tables_and_what_is_tied_to_them_are_one_blob():
    state, kept = pack_state(Net(), Packing("int8", "int4"))
    assert state["table.weight"] is state["tied.weight"]
    assert codec.read_header(state["table.weight"].numpy()).values == "int4"
    assert codec.read_header(state["sparse.weight"].numpy()).values == "int8"
    assert kept["pruned"] == ["sparse.weight"]  # a table is packed, and pruned is it not


def test_at_the_limit():
    for zeros, packed in ((1, False), (2, True)):  # of 32: 31 are more than 94 % (30.08), 30 are not
        net = Net()
        with torch.no_grad():
            net.full.weight.view(-1)[:zeros] = 0
        assert is_blob(pack_state(net, Packing())[0]["full.weight"]) is packed


def test_conv1d_and_layers_of_zeros():
    net = nn.ModuleDict({"conv": Conv1D(4, 8), "empty": nn.Linear(3, 2)})
    with torch.no_grad():
        net["conv"].weight.copy_(sparse(8, 4))
        net["empty"].weight.zero_()
    state, kept = pack_state(net, Packing("int8"))
    assert kept == {"pruned": ["conv.weight", "empty.weight"], "kept": 8, "total": 38}
    assert torch.equal(unpack(state["empty.weight"], (2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_convolutions_of_kernel_size_1(values):
    model = nn.Sequential(nn.Conv1d(8, 4, 1, groups=2), nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 3))
    with torch.no_grad():
        model[0].weight.copy_(sparse(4, 4)[:, :, None])
        model[1].weight.copy_(sparse(4, 4)[:, :, None, None])
        model[2].weight.zero_()
    state, kept = pack_state(model, Packing(values))
    assert kept == {"pruned": ["0.weight", "1.weight"], "kept": 8, "total": 32}
    error = 0 if values == "float32" else 1.5 / 127
    assert torch.allclose(unpack(state["0.weight"], (4, 4, 1)), model[0].weight, 0, error)
    assert torch.allclose(unpack(state["1.weight"], (4, 4, 1, 1)), model[1].weight, 0, error)
    assert state["2.weight"].shape == (4, 4, 3)


def test_types_that_cannot_be_packed():
    with pytest.raises(FinepruneError, match=r"sparse.weight: is torch.float64; float32, float16 and"):
        pack_state(Net().double(), Packing())


def test_smaller_types_take_less_room_and_lose_what_they_may(make_pruned, tmp_path):
    model = make_pruned(hidden_size=64, intermediate_size=128)  # a row keeps 6 or 13
    linear = {f"{name}.weight" for name in find_targets(model)}
    tables = {f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    pairs = {"keep": "float32", "float16": "float16", "int8": "bfloat16", "int4": "int8"}
    sizes = []
    for embeddings, values in pairs.items():
        saved = save_compact(model, tmp_path / "m", values=values, embeddings=embeddings)
        sizes.append(saved.bytes)
        loaded = AutoModelForSequenceClassification.from_pretrained(saved.folder)
        assert loaded.config.quantization_config.to_dict()["embeddings"] == embeddings
        for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
            kind = values if name in linear else embeddings if name in tables else "keep"
            peak = ours.abs().amax(-1, keepdim=True)
            # Half a unit in the last place, or half a step of the row's scale; int4 may cut values off
            # at 0.6 of the largest, which then misses 0.4 of itself.
            allowed = {
                "float16": ours.abs() * 2**-11 + 2**-25,
                "bfloat16": ours.abs() * 2**-8,
                "int8": peak / 127 * 0.5001,
                "int4": peak * 0.4001,
            }.get(kind)
            if allowed is None:
                assert torch.equal(ours, theirs)
            else:
                assert not torch.equal(ours, theirs)
                assert ((ours - theirs).abs() <= allowed).all(), (name, kind)
        assert saved.difference == 0 if values == "float32" else 0 < saved.difference < 1
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    assert sizes[0] < saved.dense_bytes == 4 * model.num_parameters()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_half_precision_stays_what_it_is(dtype, name, make_pruned, auto_class, same_weights, tmp_path):
    model = make_pruned(name).to(dtype)
    full = save_compact(make_pruned(name), tmp_path / "full").bytes
    saved = save_compact(model, tmp_path / "m")
    assert saved.difference == 0
    assert saved.bytes < full
    loaded = auto_class(name).from_pretrained(saved.folder)  # with T5's `wo` in float32, as ever
    assert same_weights(model, loaded.to(dtype))
    assert save_compact(auto_class(name).from_pretrained(saved.folder), tmp_path / "m").difference == 0


# ---- layers that stay packed ----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_answers_as_the_dense_one(bias):
    linear, x = nn.Linear(8, 4, bias=bias), torch.randn(3, 5, 8)
    with torch.no_grad():
        linear.weight.copy_(sparse())
    layer = PackedLinear(linear, blob(sparse()).view(torch.int8))
    assert torch.equal(layer(x), linear(x))
    assert [name for name, value in layer.named_parameters() if value.requires_grad] == ["bias"] * bias
    assert f"shape=(4, 8), bytes={len(blob(sparse()))}" in repr(layer)
    moved = copy.deepcopy(layer).to(torch.bfloat16)
    assert moved.weight.dtype == torch.int8
    assert torch.equal(moved(x.bfloat16()), copy.deepcopy(linear).bfloat16()(x.bfloat16()))
    assert torch.equal(moved.float()(x), linear(x)) or bias  # the bias was rounded on the way


def test_a_packed_layer_whose_file_was_overwritten():
    layer = PackedLinear(nn.Linear(8, 4), blob(sparse()).view(torch.int8))
    layer.weight.data[-1] += 1
    with pytest.raises(
        FinepruneError, match=r"weight of shape \(4, 8\): .*overwritten since it was loaded\?"
    ):
        layer(torch.ones(1, 8))


# ---- the manifest ---------------------------------------------------------------------------------------


def test_a_manifest_names_every_tensor_and_verify_returns_it(state_file):
    state = {"a": blob(sparse()), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(1)}
    said = verify([state_file(state)])
    assert {key: said[key] for key in ("version", "pruned", "kept", "total")} == {
        "version": 1,
        "pruned": ["a"],
        "kept": 4,
        "total": 32,
    }
    assert set(said["tensors"]) == {"a", "b", "c"}
    assert verify([state_file(state)], {"a": (4, 8)}) == said


def test_shards_say_the_same(state_file):
    one, two = {"a": blob(sparse())}, {"b": torch.ones(3)}
    about = {"pruned": ["a"], "kept": 4, "total": 32}
    files = [state_file(part, f"{i}.safetensors", one | two, **about) for i, part in enumerate((one, two))]
    assert verify(files)["kept"] == 4
    with pytest.raises(FinepruneError, match=r"b is missing \(1 tensors in all\)"):
        verify(files[:1])
    other = state_file({"b": torch.zeros(3)}, "2.safetensors")
    with pytest.raises(FinepruneError, match=r"2.safetensors: belongs to another checkpoint"):
        verify([files[0], other])
    with pytest.raises(FinepruneError, match="no weights"):
        verify([])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"b": torch.ones(4)}, "b does not match its checksum"),
        ({"b": torch.ones(3, dtype=torch.float16)}, "b does not match its checksum"),
        ({"b": torch.ones(1, 3)}, "b does not match its checksum"),
        ({"b": torch.tensor([1.0, 1.0, 1.0000001])}, "b does not match its checksum"),
        ({"a": blob(sparse(seed=1))}, "a does not match its checksum"),
        ({"new": torch.ones(1)}, "new does not match its checksum"),
    ],
)
def test_other_tensors_than_the_manifest_names(changed, message, state_file):
    state = {"a": blob(sparse()), "b": torch.ones(3)}
    about = {"pruned": ["a"], "kept": 4, "total": 32}
    with pytest.raises(FinepruneError, match=message):
        verify([state_file(state | changed, manifest_of=state, **about)])


@pytest.mark.parametrize("lie", [{"kept": 3}, {"total": 33}, {"pruned": []}, {"kept": 0, "total": 0}])
def test_lies_about_what_is_kept(lie, state_file):
    with pytest.raises(FinepruneError, match=r"says that it keeps \d of \d+ weights, and holds \d of \d"):
        verify([state_file({"a": blob(sparse())}, **lie)])


def test_blobs_that_lie_about_themselves(state_file):
    """The manifest's checksum is right: made by who made the blob."""
    good = blob(sparse())
    huge = good.clone()
    huge[24:32] = 255  # the first dimension
    with pytest.raises(FinepruneError, match=r"a: holds an array of shape \(4, 8\), expected \(8, 4\)"):
        verify([state_file({"a": good})], {"a": (8, 4)})
    file = state_file({"a": huge}, kept=4, total=8 * (2**64 - 1))
    verify([file])  # only a header is read where no shape is known, and nothing is allocated
    with pytest.raises(FinepruneError, match=r"a: holds an array of shape \(18446744073709551615, 8\)"):
        verify([file], {"a": (4, 8)})
    cut = state_file({"a": good[:-1].clone()})
    with pytest.raises(FinepruneError, match=r"model.safetensors: a: "):
        verify([cut], {"a": (4, 8)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: None, "has no fineprune manifest"),
        (lambda text: text[:-5], "manifest cannot be read"),
        (lambda text: "[]", "manifest cannot be read"),
        (lambda text: "7", "manifest cannot be read"),
        (lambda text: "[" * 100_000, "manifest cannot be read"),
        (lambda text: text.replace('"kept": 4', f'"kept": {"9" * 5000}'), "manifest cannot be read"),
        (lambda text: text.replace('"kept": 4', '"kept": "4"'), "wrong types in it"),
        (lambda text: text.replace('"total"', '"totals"'), r"manifest cannot be read \('total'\)"),
        (lambda text: json.dumps(json.loads(text) | {"tensors": []}), "wrong types in it"),
        (lambda text: json.dumps(json.loads(text) | {"pruned": {}}), "wrong types in it"),
        (lambda text: json.dumps(json.loads(text) | {"version": 2}), "version 2; .* version 1: upgrade it"),
    ],
)  # fmt: skip
def test_manifests_that_are_none(change, message, state_file):
    with pytest.raises(FinepruneError, match=message):
        verify([rewritten(state_file({"a": blob(sparse())}), change)])


def test_files_that_are_none(state_file, tmp_path):
    file = state_file({"a": blob(sparse())})
    content = file.read_bytes()
    for damaged in (b"", content[:40], content[:-1], content + b"x", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(FinepruneError, match=r"model.safetensors: (cannot be read|a is not)"):
            verify([file])
    with pytest.raises(FinepruneError, match=r"gone.safetensors: cannot be read"):
        verify([tmp_path / "gone.safetensors"])


def test_every_flipped_byte_is_found(state_file):
    file = state_file({"a": blob(sparse()), "b": torch.arange(3.0)})
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for at in range(start, len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(FinepruneError, match="does not match its checksum"):
            verify([file])


# -- sizes ------------------------------------------------------------------------------------


def stored(folder):
    """Bytes of the tensors in the file."""
    return sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())


def test_packed_bytes_are_those_of_the_file(architecture, make_pruned, tmp_path):
    model = make_pruned(architecture)
    expected = {}
    for values in ("float32", "float16", "int8"):
        save_compact(model, tmp_path / values, values=values)
        expected[values] = stored(tmp_path / values)
    save_compact(model, tmp_path / "small", values="int8", embeddings="int8")
    expected["int8, embeddings int8"] = stored(tmp_path / "small")
    assert packing.packed_bytes(model) == expected
    model.save_pretrained(tmp_path / "dense")
    assert packing.bytes_of(model.state_dict()) == stored(tmp_path / "dense")


def test_a_dense_model_takes_less_only_where_it_is_rounded(make_dense):
    model = make_dense("bert")
    whole = packing.bytes_of(model.state_dict())
    sizes = packing.packed_bytes(model)
    assert sizes.pop("float32") == whole
    assert whole > sizes["float16"] > sizes["int8"] > sizes["int8, embeddings int8"]


def test_a_type_that_cannot_hold_the_values_has_no_size():
    net = Net()
    with torch.no_grad():
        net.sparse.weight[0, 0] = 1e6
    assert set(packing.packed_bytes(net)) == {"float32", "int8", "int8, embeddings int8"}
    with torch.no_grad():
        net.sparse.weight[0, 0] = float("nan")  # a run that diverged
    assert set(packing.packed_bytes(net)) == {"float32", "float16"}


@pytest.mark.parametrize(
    ("values", "embeddings", "exact"),
    [("float32", "keep", True), ("bfloat16", "keep", False), ("float32", "int4", False)],
)
def test_a_packing_is_exact_if_neither_type_rounds(values, embeddings, exact):
    assert Packing(values, embeddings).is_exact is exact


@pytest.mark.parametrize(
    ("values", "embeddings", "message"),
    [
        ("Int8", "keep", r"values='Int8': did you mean int8\? allowed are float32, float16, bfloat16, int8$"),
        ("int8", 7, r"embeddings=7: allowed are keep, float16, int8, int4$"),
    ],
)
def test_unknown_types(values, embeddings, message):
    with pytest.raises(FinepruneError, match=message):
        Packing(values, embeddings)
