"""Checkpoints of other programs come in as their own code would have them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from fineprune import summary
from fineprune.checkpoint.legacy_import import import_checkpoint
from fineprune.errors import FinepruneError

LINEAR = [
    f"bert.encoder.layer.{layer}.{name}"
    for layer in (0, 1)
    for name in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]
QUERY, ATTENTION, UP, DOWN = LINEAR[0], LINEAR[3], LINEAR[4], LINEAR[5]
IDS = torch.tensor([[2, 5, 7, 3], [2, 8, 6, 3]])


@pytest.fixture
def scores(foreign):
    model = foreign.bert()  # it sets the seed
    return {name: torch.randn(model.get_submodule(name).weight.shape) for name in LINEAR}


def top(values, count):
    """The `count` highest in plain Python; equal ones by index."""
    flat = values.flatten().tolist()
    best = sorted(range(len(flat)), key=lambda index: (-flat[index], index))[:count]
    mask = torch.zeros(len(flat))
    mask[best] = 1
    return mask.view(values.shape)


def check(model, expected, masks, biases=()):
    """`model` is `expected` with the weights of `masks` multiplied, and gives its outputs."""
    with torch.no_grad():
        for name, mask in masks.items():
            expected.get_submodule(name).weight.mul_(mask)
        for name, mask in dict(biases).items():
            expected.get_submodule(name).bias.mul_(mask)
    found = model.state_dict()
    assert set(found) == set(expected.state_dict())
    for key, value in expected.state_dict().items():
        assert torch.equal(found[key], value), key
    assert not any(
        model.get_submodule(name).weight[mask == 0].signbit().any() for name, mask in masks.items()
    )
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(IDS)[0], expected(IDS)[0])


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
def test_movement_of_the_original_scripts(folder, form, tmp_path, scores, foreign):
    scores[QUERY].fill_(0.25)  # all equal: the first int(0.1 * 256) = 25
    before, _ = foreign.masked(folder, scores, form=form)
    masks = {name: top(score, int(0.1 * score.numel())) for name, score in scores.items()}
    assert masks[QUERY].flatten().tolist() == [1] * 25 + [0] * 231
    model = import_checkpoint(str(folder), threshold=0.1)
    check(model, before, masks)
    assert type(model) is BertForSequenceClassification
    assert model.config.model_type == "bert"
    assert model.config.num_labels == 3
    assert not {"pruning_method", "mask_init", "mask_scale"} & set(model.config.to_dict())
    # 25 of 16 * 16, four times, and 51 of 16 * 32, twice, in each of two layers
    assert summary(model).kept == 2 * (4 * 25 + 2 * 51)
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_soft_movement_and_its_floor(folder, foreign):
    some = torch.full((16, 16), -3.0)
    some[3, :8] = 0.0  # sigmoid 0.5, beside 0.047
    few = torch.linspace(-9, -5, 256).view(16, 16)  # all below tau: int(0.005 * 256) + 1 = 2 stay
    before, _ = foreign.masked(folder, {QUERY: some, ATTENTION: few}, "sigmoied_threshold")
    masks = {QUERY: (some == 0).float(), ATTENTION: torch.tensor([0.0] * 254 + [1.0] * 2).view(16, 16)}
    check(import_checkpoint(folder, threshold=0.1), before, masks)


def test_the_gate_of_l0_multiplies(folder, foreign):
    scores = torch.zeros(16, 16)
    scores[0], scores[1] = -3.0, 3.0
    before, _ = foreign.masked(folder, {QUERY: scores}, "l0")
    # 1.2 sigmoid(S) - 0.1, clipped: 0.5 at 0, below 0 at -3, above 1 at 3
    gate = torch.full((16, 16), 0.5)
    gate[0], gate[1] = 0.0, 1.0
    model = import_checkpoint(folder)
    query = before.get_submodule(QUERY).weight * gate
    torch.testing.assert_close(model.get_submodule(QUERY).weight, query)
    assert torch.equal(model.get_submodule(QUERY).weight == 0, gate == 0)
    assert torch.equal(model.get_submodule(UP).weight, before.get_submodule(UP).weight)


@pytest.mark.parametrize("named", ["config", "argument"])
def test_magnitude_has_no_scores(folder, named, foreign):
    if named == "config":
        before, _ = foreign.masked(folder, {}, "magnitude")
    else:
        foreign.save(folder, before := foreign.bert(), {})
    masks = {
        name: top(m.weight.abs(), int(0.3 * m.weight.numel()))
        for name in LINEAR
        if (m := before.get_submodule(name))
    }
    model = import_checkpoint(folder, None if named == "config" else "magnitude", threshold=0.3)
    check(model, before, masks)


def test_a_threshold_is_a_score_or_a_share_of_all(folder, scores, foreign):
    before, _ = foreign.masked(folder, scores, "threshold")
    with pytest.raises(FinepruneError, match=r"method is None; pass method=, one of topK, global_topk"):
        import_checkpoint(folder, threshold=0.1)
    check(import_checkpoint(folder, "threshold", 0.7), before, {name: s > 0.7 for name, s in scores.items()})
    # The scripts' global cut is the score that int(0.1 n) + 1 of all n = 4096 exceed.
    cut = sorted(torch.cat([score.flatten() for score in scores.values()]).tolist(), reverse=True)[410]
    model = import_checkpoint(folder, "global_topk", 0.1)
    assert summary(model).kept == 410
    check(model, foreign.bert(), {name: score > cut for name, score in scores.items()})


def test_a_share_of_next_to_nothing_keeps_nothing(folder, foreign):
    before, _ = foreign.masked(folder, {})
    check(import_checkpoint(folder, threshold=0.001), before, {name: torch.tensor(0.0) for name in LINEAR})


def test_names_and_leftovers_of_2020(folder, foreign):
    state = {}
    for key, value in foreign.bert().state_dict().items():
        state[
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        ] = value
    state["bert.embeddings.position_ids"] = torch.arange(8)[None]
    before, _ = foreign.masked(folder, {}, state=state, torch_dtype="float16")
    check(import_checkpoint(folder, threshold=1.0), before, {})


def test_question_answering_had_a_pooler_it_did_not_use(folder, foreign):
    state = foreign.bert(BertForQuestionAnswering).state_dict()
    state |= {"bert.pooler.dense.weight": torch.zeros(16, 16), "bert.pooler.dense.bias": torch.zeros(16)}
    before, _ = foreign.masked(folder, {}, kind=BertForQuestionAnswering, state=state)
    check(import_checkpoint(folder, threshold=1), before, {})


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_shards_and_half_precision(folder, form, foreign):
    foreign.masked(folder, {QUERY: torch.arange(256.0).view(16, 16)}, form=form)
    name = "pytorch_model.bin" if form == "bin" else "model.safetensors"
    from safetensors.torch import load_file

    state = torch.load(folder / name) if form == "bin" else load_file(folder / name)
    (folder / name).unlink()
    state = {key: value.half() for key, value in state.items()}
    stem, suffix = name.split(".")
    for part in (0, 1):
        piece = {key: state[key] for index, key in enumerate(state) if index % 2 == part}
        write = torch.save if form == "bin" else save_file
        write(piece, folder / f"{stem}-0000{part + 1}-of-00002.{suffix}")
    model = import_checkpoint(folder, threshold=0.5)
    query = model.get_submodule(QUERY).weight
    assert query.dtype == torch.float32
    assert torch.equal(query[:8], torch.zeros(8, 16))
    assert torch.equal(query[8:], foreign.bert().get_submodule(QUERY).weight[8:].half().float())
    (folder / f"{stem}-00002-of-00002.{suffix}").unlink()
    with pytest.raises(FinepruneError, match=r"has no matrix|must fit.*Missing key") as error:
        import_checkpoint(folder, threshold=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_blocks_of_nn_pruning(folder, form, foreign):
    query = torch.tensor([[1.0, 5.0], [0.0, 2.0], [-1.0, 0.5], [-2.0, -3.0]])  # of blocks 4 x 8
    down = torch.randn(16, 32)  # of blocks 1 x 1
    before, _ = foreign.patched(folder, {(QUERY, 0): query, (DOWN, 0): down}, form)
    # int(0.4 * 8) = 3: the scores 5, 2 and 1
    mask = torch.zeros(16, 16)
    mask[:4, :] = 1
    mask[4:8, 8:] = 1
    masks = {QUERY: mask, DOWN: top(down, 204)}  # int(0.4 * 512)
    biases = {QUERY: torch.tensor([1.0] * 8 + [0.0] * 8), DOWN: masks[DOWN].any(1)}
    check(import_checkpoint(folder, "topK", 0.4), before, masks, biases)


def test_rows_and_columns_of_nn_pruning(folder, foreign):
    rows, columns = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0, 1.5, -1.0])  # blocks of 8 x 4
    before, _ = foreign.patched(folder, {(ATTENTION, 0): rows, (ATTENTION, 1): columns})
    # products 3 6 4.5 -3 and 1 2 1.5 -1: the three highest are in the first row of blocks
    mask = torch.zeros(16, 16)
    mask[:8, :12] = 1
    biases = {ATTENTION: torch.tensor([1.0] * 8 + [0.0] * 8)}
    check(import_checkpoint(folder, "topK", 3 / 8), before, {ATTENTION: mask}, biases)


def test_rows_or_columns_of_nn_pruning(folder, foreign):
    shared = torch.linspace(-4, 3.75, 32)  # one for each hidden unit: rows of one layer, columns of the next
    output = torch.tensor([1.0, -9.0] * 4)  # blocks of 2 columns
    before, _ = foreign.patched(folder, {(UP, 0): shared, (DOWN, 1): shared, (ATTENTION, 1): output})
    kept = (torch.arange(32) >= 17).float()  # sigmoid(S) > 0.5: S = 0 itself does not
    assert shared[16] == 0
    columns = torch.tensor([1.0, 1, 0, 0] * 4)
    masks = {
        UP: kept[:, None].expand(32, 16),
        DOWN: kept.expand(16, 32),
        ATTENTION: columns.expand(16, 16),
    }
    check(import_checkpoint(folder, "sigmoied_threshold", 0.5), before, masks, {UP: kept})


def test_the_settings_of_nn_pruning(folder, foreign):
    args = {
        "dense_pruning_method": "sigmoied_threshold:1d_alt", "attention_pruning_method": "sigmoied_threshold",
        "ampere_pruning_method": "disabled", "final_threshold": 0.1, "bias_mask": False,
        "linear_min_parameters": 0.25, "gelu_patch": False, "rewind_model_name_or_path": None,
    }  # fmt: skip
    rows = torch.arange(-20.0, -4.0)  # all below tau: the floor of the 16 x 1 grid, int(0.25 * 16) + 1 rows
    before, _ = foreign.patched(folder, {(QUERY, 0): rows[:, None], (DOWN, 0): torch.zeros(1, 1)}, args=args)
    mask = torch.zeros(16, 16)
    mask[11:] = 1
    check(import_checkpoint(folder), before, {QUERY: mask})
    assert torch.equal(
        import_checkpoint(folder, threshold=0.6).get_submodule(DOWN).weight, torch.zeros(16, 32)
    )
    (folder / "sparse_args.json").write_text(
        json.dumps(args | {"linear_min_parameters": 0, "bias_mask": True})
    )
    model = import_checkpoint(folder, threshold=0.6)
    assert not model.get_submodule(QUERY).weight.any()
    assert not model.get_submodule(QUERY).bias.any()


def test_magnitude_of_nn_pruning_looks_at_no_scores(folder, foreign):
    before, _ = foreign.patched(
        folder, {(QUERY, 0): torch.zeros(4, 4)}, args={"dense_pruning_method": "magnitude", "bias_mask": True}
    )
    mask = top(before.get_submodule(QUERY).weight.abs(), 12)
    model = import_checkpoint(folder, threshold=0.05)  # int(0.05 * 256)
    check(model, before, {QUERY: mask}, {QUERY: mask.any(1)})
