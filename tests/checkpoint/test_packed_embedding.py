"""Tables that stay packed give the rows that they would give unpacked."""

import pytest
import torch
from torch import nn

import fineprune
from fineprune import FinepruneError
from fineprune.checkpoint import packing
from fineprune.checkpoint.loading import load, to_dense
from fineprune.checkpoint.packed_embedding import PackedEmbedding

WHOLE = ("bert", "roberta", "distilbert", "electra")


def packed(table, values):
    return PackedEmbedding(table, packing.pack("x", table.weight, values).view(torch.int8))


@pytest.mark.parametrize("values", ["float16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_are_those_of_the_unpacked_table(values, dtype):
    torch.manual_seed(0)
    table = nn.Embedding(7, 6, padding_idx=0, dtype=dtype)
    with torch.no_grad():
        table.weight[0] = 1e-5  # stored, and 0 as a level
        module = packed(table, values)
        unpacked = packing.unpack(module.weight, (7, 6)).to(dtype)
        ids = torch.tensor([[6, 0, 3], [3, 3, 1]])
        assert torch.equal(module(ids), unpacked[ids])
        assert torch.equal(module(ids[0, 0]), unpacked[6])
        assert module(ids[:0]).shape == (0, 3, 6)
        assert module(ids).dtype == dtype
        assert (
            torch.equal(module.to(torch.bfloat16)(ids), unpacked[ids].to(torch.bfloat16))
            or dtype == torch.half
        )
        for wrong in (7, -1):
            with pytest.raises(IndexError):
                module(torch.tensor([wrong]))
    assert (module.num_embeddings, module.embedding_dim, module.padding_idx) == (7, 6, 0)


def test_by_hand():
    table = nn.Embedding(2, 2)
    table.weight = nn.Parameter(torch.tensor([[127.0, -63.5], [7.0, -3.0]]))
    assert packed(table, "int8")(torch.tensor(0)).tolist() == pytest.approx([127, -63.5], rel=0.01)
    assert packed(table, "int4")(torch.tensor(1)).tolist() == pytest.approx([7, -3], rel=0.01)


def test_which_tables_fit():
    def fits(table, values):
        return PackedEmbedding.fits(table, packing.pack("x", table.weight, values))

    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    torch.manual_seed(0)
    whole, sparse = nn.Embedding(8, 6), nn.Embedding(8, 6)
    with torch.no_grad():
        sparse.weight[:4] = 0  # its zeros are left out, so that no row has a place of its own
    assert all(fits(whole, values) for values in ("float16", "int8", "int4"))
    assert not fits(sparse, "int8")
    assert not fits(Scaled(8, 6), "int8")
    assert not fits(nn.Embedding(8, 6, max_norm=1.0), "int8")
    assert not fits(nn.Embedding(8, 5), "int4")  # a row begins in the middle of a byte
    assert fits(nn.Embedding(8, 5), "int8")


@pytest.mark.parametrize("embeddings", ["float16", "int8", "int4", "keep"])
def test_loaded_and_saved_again(embeddings, make_pruned, architecture, same_answers, tmp_path):
    model = make_pruned(architecture)
    folder = fineprune.save_compact(model, tmp_path / "m", embeddings=embeddings).folder
    loaded, dense = load(folder, packed=True), load(folder)
    assert same_answers(dense, loaded)
    table = loaded.get_input_embeddings()
    assert isinstance(table, PackedEmbedding) == (architecture in WHOLE and embeddings != "keep")
    assert same_answers(load(folder, dtype=torch.float16), load(folder, packed=True, dtype=torch.float16))
    loaded.save_pretrained(tmp_path / "again")
    assert same_answers(dense, load(tmp_path / "again"))
    assert same_answers(dense, load(tmp_path / "again", packed=True))
    packing.verify([tmp_path / "again/model.safetensors"])


def test_a_table_that_a_decoder_is_tied_to_is_unpacked(make_pruned, same_answers, tmp_path):
    import transformers

    config = make_pruned().config
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, 1:] = 0
    folder = fineprune.save_compact(model, tmp_path / "m", embeddings="int8").folder
    loaded = load(folder, packed=True)
    table = loaded.get_input_embeddings()
    assert type(table) is nn.Embedding
    assert loaded.cls.predictions.decoder.weight is table.weight
    assert same_answers(load(folder), loaded)


def test_what_asks_for_a_dense_model(make_pruned, tmp_path):
    folder = fineprune.save_compact(make_pruned(), tmp_path / "m", embeddings="int8").folder
    model = load(folder, packed=True)
    for act in (lambda: to_dense(model), lambda: fineprune.save_compact(model, tmp_path / "n")):
        with pytest.raises(FinepruneError, match="load it without packed=True"):
            act()
