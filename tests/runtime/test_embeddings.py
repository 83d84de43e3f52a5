import numpy as np
import pytest
import torch
from runtime.models import KINDS, make_model

from fineprune_runtime import EngineError, Norm
from fineprune_runtime.architectures import ARCHITECTURES
from fineprune_runtime.embeddings import Embeddings, layer_norm, read_embeddings
from fineprune_runtime.folder import Folder, Table

PLAIN = Norm(np.ones(2, np.float32), np.zeros(2, np.float32))


def table(*rows):
    return Table(np.array(rows, np.float32))


def made(**changes):
    """Three words, three positions, of which the sums are easy to see."""
    parts = {
        "words": table([0, 0], [1, 0], [2, 0]),
        "positions": table([0, 10], [0, 20], [0, 30]),
        "types": table([0, 0], [0, 100]),
        "norm": PLAIN,
        "epsilon": 0.0,
        "projection": None,
        "padding": None,
    }
    return Embeddings(**(parts | changes))


def saved(kind, folder, **settings):
    """The embeddings of a tiny model as they are read, and torch's."""
    model = make_model(kind, "text", **settings)
    model.save_pretrained(folder)
    base = model.base_model
    return read_embeddings(Folder(folder), f"{model.base_model_prefix}."), base


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_are_those_of_torch(kind, tmp_path):
    found, base = saved(kind, tmp_path)
    padding = base.config.pad_token_id
    # Padding at the end, and in the middle, where a text may hold the token itself.
    ids = np.array([[2, 7, 9, 8, 3, padding], [2, padding, 8, 3, padding, padding], [5, 6, 7, 8, 9, 10]])
    types = np.array([[0, 0, 1, 1, 1, 0]] * 3) if kind in ("bert", "electra", "ernie") else None
    given = {} if types is None else {"token_type_ids": torch.from_numpy(types)}
    with torch.no_grad():
        expected = base.embeddings(torch.from_numpy(ids), **given)
        if kind == "electra":
            expected = base.embeddings_project(expected)
    assert np.abs(found(ids, types) - expected.numpy()).max() < 1e-6
    assert (found.projection is not None) == (kind == "electra")
    assert found.limit == (38 if ARCHITECTURES[kind].offset else 40)


def test_electra_of_equal_widths_has_no_projection(tmp_path):
    found, base = saved("electra", tmp_path, embedding_size=16)
    assert found.projection is None
    with torch.no_grad():
        assert (
            np.abs(found(np.array([[3, 4]])) - base.embeddings(torch.tensor([[3, 4]])).numpy()).max() < 1e-6
        )


def test_a_sum_by_hand():
    # Word 2 at position 1, of type 1: (2, 120), whose norm is (-1, 1).
    weighted = Norm(np.array([3, 5], np.float32), np.array([10, 20], np.float32))
    assert made(norm=weighted)(np.array([[1, 2]]), np.array([[0, 1]]))[0, 1].tolist() == [7, 25]


def test_positions_of_roberta_by_hand():
    # The padding token is 1: tokens count from 2, and padding has position 1.
    positions = made(padding=1)._position_rows(np.array([[0, 2, 1, 2, 1], [5, 5, 5, 5, 5]]))
    assert positions.tolist() == [[2, 3, 1, 4, 1], [2, 3, 4, 5, 6]]
    assert made(padding=1).limit == 1
    assert made()._position_rows(np.array([[1, 1], [1, 0]])).tolist() == [0, 1]  # of both texts


def test_a_norm_by_hand():
    x = np.array([[1, 3, 5, 7]], np.float32)
    norm = Norm(np.full(4, 2, np.float32), np.array([0, 0, 0, 1], np.float32))
    # Mean 4, variance 5, and 4 more: -3, -1, 1, 3 over 3, times 2.
    assert layer_norm(x, norm, 4.0)[0].tolist() == pytest.approx([-2, -2 / 3, 2 / 3, 3])


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([[0] * 4], None, "4 tokens are too many: the model's positions end at 3; cut the texts"),
        ([[0, 3]], None, "token id 3: the model's table ends at 2; the tokenizer is of another model"),
        ([[-1]], None, "token id -1"),
        ([[0, 1]], [[0, 2]], "token type 2: the model's table ends at 1"),
    ],
)
def test_what_the_tables_lack(ids, types, message):
    with pytest.raises(EngineError, match=message):
        made()(np.array(ids), None if types is None else np.array(types))


def test_no_tokens_at_all():
    assert made()(np.zeros((2, 0), np.int64)).shape == (2, 0, 2)


def test_the_padding_of_mpnet_is_fixed(tmp_path):
    found, base = saved("mpnet", tmp_path, max_position_embeddings=9)
    base.config.pad_token_id = 0
    base.save_pretrained(tmp_path)
    assert read_embeddings(Folder(tmp_path), "").padding == found.padding == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"pad_token_id": "1"}, "pad_token_id in config.json is '1', expected a whole number"),
    ({"pad_token_id": -1}, "pad_token_id in config.json is -1"),
    ({"pad_token_id": 39}, "with pad_token_id 39 none of 40 positions remains"),
    ({"vocab_size": None}, "vocab_size in config.json is None"),
])  # fmt: skip
def test_settings_that_cannot_be(change, message, tmp_path):
    make_model("roberta", "text").save_pretrained(tmp_path)
    folder = Folder(tmp_path)
    folder.config.update(change)
    with pytest.raises(EngineError, match=message):
        read_embeddings(folder, "roberta.")


def test_embeddings_of_tasks_are_refused(tmp_path):
    make_model("ernie", "text", use_task_id=True).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"use_task_id in config.json is True; embeddings of tasks are not"):
        read_embeddings(Folder(tmp_path), "ernie.")


def test_what_they_take_in_memory(tmp_path):
    found, base = saved("electra", tmp_path)
    projection = found.projection.nbytes  # in the engine's form, which adds its ways about the weights
    assert projection >= sum(4 * weight.numel() for weight in base.embeddings_project.parameters())
    tables = sum(4 * weight.numel() for weight in base.embeddings.parameters())
    assert found.nbytes == tables + projection
