"""The layouts are written out here, key by key, as the two programs save them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from fineprune import summary
from fineprune.checkpoint.foreign import import_checkpoint
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


def bert(kind=BertForSequenceClassification):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8, num_labels=2 if kind is BertForQuestionAnswering else 3,
        initializer_range=0.5,
    )  # fmt: skip
    model = kind(config).eval()
    for name in LINEAR:
        torch.nn.init.normal_(model.get_submodule(name).bias)  # so that a lost one shows
    return model


def random_scores():
    model = bert()  # it sets the seed
    return {name: torch.randn(model.get_submodule(name).weight.shape) for name in LINEAR}


def save(folder: Path, model, scores, form="bin", state=None, **settings) -> Path:
    """The files of a checkpoint; `scores` by key, config settings replaced where named."""
    folder.mkdir(exist_ok=True)
    config = model.config.to_dict() | {"architectures": [type(model).__name__]} | settings
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    state = (model.state_dict() if state is None else state) | scores
    state = {key: value.clone() for key, value in state.items()}
    if form == "safetensors":
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "bin")
    return folder


def masked(
    folder, scores, method="topK", form="bin", kind=BertForSequenceClassification, state=None, **settings
):
    """As the original scripts save; a layer that `scores` lacks has high ones."""
    model = bert(kind)
    every = {name: torch.full_like(model.get_submodule(name).weight, 9.0) for name in LINEAR} | scores
    every = {} if method == "magnitude" else every
    settings = {
        "model_type": "masked_bert", "architectures": ["Masked" + kind.__name__],
        "pruning_method": method, "mask_init": "constant", "mask_scale": 0.0,
    } | settings  # fmt: skip
    scores = {f"{name}.mask_scores": score for name, score in every.items()}
    return model, save(folder, model, scores, form, state, **settings)


def patched(folder, scores, form="bin", args=None, **settings):
    """As nn_pruning saves a model it patched; `scores` by layer and side."""
    model = bert()
    keys = {f"{name}.mask_module.context_modules.{side}.mask_scores": s for (name, side), s in scores.items()}
    save(folder, model, keys, form, **settings)
    if args is not None:
        (folder / "sparse_args.json").write_text(json.dumps(args))
    return model, folder


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


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
def test_movement_of_the_original_scripts(folder, form, tmp_path):
    scores = random_scores()
    scores[QUERY].fill_(0.25)  # all equal: the first int(0.1 * 256) = 25
    before, _ = masked(folder, scores, form=form)
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


def test_soft_movement_and_its_floor(folder):
    some = torch.full((16, 16), -3.0)
    some[3, :8] = 0.0  # sigmoid 0.5, beside 0.047
    few = torch.linspace(-9, -5, 256).view(16, 16)  # all below tau: int(0.005 * 256) + 1 = 2 stay
    before, _ = masked(folder, {QUERY: some, ATTENTION: few}, "sigmoied_threshold")
    masks = {QUERY: (some == 0).float(), ATTENTION: torch.tensor([0.0] * 254 + [1.0] * 2).view(16, 16)}
    check(import_checkpoint(folder, threshold=0.1), before, masks)


def test_the_gate_of_l0_multiplies(folder):
    scores = torch.zeros(16, 16)
    scores[0], scores[1] = -3.0, 3.0
    before, _ = masked(folder, {QUERY: scores}, "l0")
    # 1.2 sigmoid(S) - 0.1, clipped: 0.5 at 0, below 0 at -3, above 1 at 3
    gate = torch.full((16, 16), 0.5)
    gate[0], gate[1] = 0.0, 1.0
    model = import_checkpoint(folder)
    query = before.get_submodule(QUERY).weight * gate
    torch.testing.assert_close(model.get_submodule(QUERY).weight, query)
    assert torch.equal(model.get_submodule(QUERY).weight == 0, gate == 0)
    assert torch.equal(model.get_submodule(UP).weight, before.get_submodule(UP).weight)


@pytest.mark.parametrize("named", ["config", "argument"])
def test_magnitude_has_no_scores(folder, named):
    if named == "config":
        before, _ = masked(folder, {}, "magnitude")
    else:
        save(folder, before := bert(), {})
    masks = {
        name: top(m.weight.abs(), int(0.3 * m.weight.numel()))
        for name in LINEAR
        if (m := before.get_submodule(name))
    }
    model = import_checkpoint(folder, None if named == "config" else "magnitude", threshold=0.3)
    check(model, before, masks)


def test_a_threshold_is_a_score_or_a_share_of_all(folder):
    scores = random_scores()
    before, _ = masked(folder, scores, "threshold")
    with pytest.raises(FinepruneError, match=r"method is None; pass method=, one of topK, global_topk"):
        import_checkpoint(folder, threshold=0.1)
    check(import_checkpoint(folder, "threshold", 0.7), before, {name: s > 0.7 for name, s in scores.items()})
    # The scripts' global cut is the score that int(0.1 n) + 1 of all n = 4096 exceed.
    cut = sorted(torch.cat([score.flatten() for score in scores.values()]).tolist(), reverse=True)[410]
    model = import_checkpoint(folder, "global_topk", 0.1)
    assert summary(model).kept == 410
    check(model, bert(), {name: score > cut for name, score in scores.items()})


def test_a_share_of_next_to_nothing_keeps_nothing(folder):
    before, _ = masked(folder, {})
    check(import_checkpoint(folder, threshold=0.001), before, {name: torch.tensor(0.0) for name in LINEAR})


def test_names_and_leftovers_of_2020(folder):
    state = {}
    for key, value in bert().state_dict().items():
        state[
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        ] = value
    state["bert.embeddings.position_ids"] = torch.arange(8)[None]
    before, _ = masked(folder, {}, state=state, torch_dtype="float16")
    check(import_checkpoint(folder, threshold=1.0), before, {})


def test_question_answering_had_a_pooler_it_did_not_use(folder):
    state = bert(BertForQuestionAnswering).state_dict()
    state |= {"bert.pooler.dense.weight": torch.zeros(16, 16), "bert.pooler.dense.bias": torch.zeros(16)}
    before, _ = masked(folder, {}, kind=BertForQuestionAnswering, state=state)
    check(import_checkpoint(folder, threshold=1), before, {})


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_shards_and_half_precision(folder, form):
    masked(folder, {QUERY: torch.arange(256.0).view(16, 16)}, form=form)
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
    assert torch.equal(query[8:], bert().get_submodule(QUERY).weight[8:].half().float())
    (folder / f"{stem}-00002-of-00002.{suffix}").unlink()
    refused(folder, r"has no matrix|must fit.*Missing key", threshold=0.5)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_blocks_of_nn_pruning(folder, form):
    query = torch.tensor([[1.0, 5.0], [0.0, 2.0], [-1.0, 0.5], [-2.0, -3.0]])  # of blocks 4 x 8
    down = torch.randn(16, 32)  # of blocks 1 x 1
    before, _ = patched(folder, {(QUERY, 0): query, (DOWN, 0): down}, form)
    # int(0.4 * 8) = 3: the scores 5, 2 and 1
    mask = torch.zeros(16, 16)
    mask[:4, :] = 1
    mask[4:8, 8:] = 1
    masks = {QUERY: mask, DOWN: top(down, 204)}  # int(0.4 * 512)
    biases = {QUERY: torch.tensor([1.0] * 8 + [0.0] * 8), DOWN: masks[DOWN].any(1)}
    check(import_checkpoint(folder, "topK", 0.4), before, masks, biases)


def test_rows_and_columns_of_nn_pruning(folder):
    rows, columns = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0, 1.5, -1.0])  # blocks of 8 x 4
    before, _ = patched(folder, {(ATTENTION, 0): rows, (ATTENTION, 1): columns})
    # products 3 6 4.5 -3 and 1 2 1.5 -1: the three highest are in the first row of blocks
    mask = torch.zeros(16, 16)
    mask[:8, :12] = 1
    biases = {ATTENTION: torch.tensor([1.0] * 8 + [0.0] * 8)}
    check(import_checkpoint(folder, "topK", 3 / 8), before, {ATTENTION: mask}, biases)


def test_rows_or_columns_of_nn_pruning(folder):
    shared = torch.linspace(-4, 3.75, 32)  # one for each hidden unit: rows of one layer, columns of the next
    output = torch.tensor([1.0, -9.0] * 4)  # blocks of 2 columns
    before, _ = patched(folder, {(UP, 0): shared, (DOWN, 1): shared, (ATTENTION, 1): output})
    kept = (torch.arange(32) >= 17).float()  # sigmoid(S) > 0.5: S = 0 itself does not
    assert shared[16] == 0
    columns = torch.tensor([1.0, 1, 0, 0] * 4)
    masks = {
        UP: kept[:, None].expand(32, 16),
        DOWN: kept.expand(16, 32),
        ATTENTION: columns.expand(16, 16),
    }
    check(import_checkpoint(folder, "sigmoied_threshold", 0.5), before, masks, {UP: kept})


def test_the_settings_of_nn_pruning(folder):
    args = {
        "dense_pruning_method": "sigmoied_threshold:1d_alt", "attention_pruning_method": "sigmoied_threshold",
        "ampere_pruning_method": "disabled", "final_threshold": 0.1, "bias_mask": False,
        "linear_min_parameters": 0.25, "gelu_patch": False, "rewind_model_name_or_path": None,
    }  # fmt: skip
    rows = torch.arange(-20.0, -4.0)  # all below tau: the floor of the 16 x 1 grid, int(0.25 * 16) + 1 rows
    before, _ = patched(folder, {(QUERY, 0): rows[:, None], (DOWN, 0): torch.zeros(1, 1)}, args=args)
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


def test_magnitude_of_nn_pruning_looks_at_no_scores(folder):
    before, _ = patched(
        folder, {(QUERY, 0): torch.zeros(4, 4)}, args={"dense_pruning_method": "magnitude", "bias_mask": True}
    )
    mask = top(before.get_submodule(QUERY).weight.abs(), 12)
    model = import_checkpoint(folder, threshold=0.05)  # int(0.05 * 256)
    check(model, before, {QUERY: mask}, {QUERY: mask.any(1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"threshold is None; pass threshold=, for topK 0 < threshold <= 1, the share that stays"),
        ({"threshold": 10}, r"threshold is 10; .*0 < threshold <= 1"),
        ({"threshold": 0}, r"threshold is 0; "),
        ({"threshold": float("nan")}, r"threshold is nan; "),
        ({"threshold": True}, r"threshold is True; "),
        (
            {"method": "movement", "threshold": 0.1},
            r"method is 'movement'; pass method=, one of topK, .*, l0",
        ),
        ({"method": "l0"}, r"method is 'l0', but the files say 'topK'; leave method out"),
        ({"method": "global_topk", "threshold": 0.1}, r"method is 'global_topk', but the files say 'topK'"),
    ],
)
def test_methods_and_thresholds_that_cannot_be(folder, arguments, message):
    masked(folder, {})
    refused(folder, message, **arguments)


@pytest.mark.parametrize("threshold", [1.0, -0.1, None])
def test_thresholds_that_soft_movement_cannot_have(folder, threshold):
    masked(folder, {}, "sigmoied_threshold")
    refused(
        folder,
        rf"threshold is {threshold}; .* for sigmoied_threshold 0 <= threshold < 1, tau",
        threshold=threshold,
    )


def refused(folder, message, **arguments):
    with pytest.raises(FinepruneError, match=message) as error:
        import_checkpoint(folder, **arguments)
    assert "\n" not in str(error.value)


def test_ordinary_checkpoints(folder):
    save(folder, bert(), {})
    refused(
        folder,
        r"run: an ordinary checkpoint, no key ends in mask_scores; `fineprune compact` takes it as it is",
    )
    save(folder, bert(), {}, model_type="masked_bert", pruning_method="topK")  # bertarized
    refused(folder, r"an ordinary checkpoint.*a masked_bert once", threshold=0.1)


def test_scores_that_do_not_fit(folder):
    for score in (torch.zeros(16, 8), torch.zeros(16), torch.zeros(16, 16, 1), torch.zeros(0, 16)):
        masked(folder, {QUERY: score})
        refused(
            folder, r"mask_scores of .*layer\.0.*query: .* for a weight \[16, 16\]; allowed: ", threshold=0.1
        )
    for scores in (
        {(QUERY, 0): torch.zeros(3, 4)},
        {(QUERY, 1): torch.zeros(5)},
        {(QUERY, 0): torch.zeros(0)},
        {(QUERY, 0): torch.zeros(16, 16), (QUERY, 1): torch.zeros(16)},
        {(QUERY, 0): torch.zeros(16, 16), (QUERY, 1): torch.zeros(16, 16)},
    ):
        patched(folder, scores)
        refused(folder, r"mask_scores of .*query: .* for a weight \[16, 16\]", method="topK", threshold=0.1)


def test_scores_that_are_not_numbers(folder):
    masked(folder, {UP: torch.full((32, 16), float("nan"))})
    refused(folder, r"mask_scores of .*layer\.0\.intermediate\.dense are NaN", threshold=0.1)


def test_scores_without_a_weight_and_weights_without_scores(folder):
    model, _ = masked(folder, {"bert.encoder.layer.7.output.dense": torch.zeros(2, 2)})
    refused(
        folder,
        r"layer\.7\.output\.dense\.mask_scores has no matrix .*7\.output\.dense\.weight",
        threshold=0.1,
    )
    masked(folder, {"bert.embeddings.LayerNorm": torch.zeros(16)})
    refused(folder, r"LayerNorm\.mask_scores has no matrix", threshold=0.1)
    save(folder, model, {f"{QUERY}.mask_scores": torch.zeros(16, 16)}, pruning_method="topK")
    refused(folder, r"layer\.0\.attention\.self\.key has no mask_scores as others have", threshold=0.1)


def test_scores_that_safetensors_may_have_dropped(folder):
    patched(folder, {(UP, 0): torch.zeros(32)}, "safetensors")
    refused(
        folder,
        r"safetensors drop mask_scores by row or column.*; save the model as pytorch_model.bin",
        method="topK",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.bias"), r"Missing key.*classifier\.bias"),
        (lambda state: state.update(more=torch.zeros(1)), r"Unexpected key.*more"),
        (
            lambda state: state.update({"classifier.bias": torch.zeros(5)}),
            r"size mismatch for classifier\.bias",
        ),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    state = bert().state_dict()
    change(state)
    masked(folder, {}, state=state)
    refused(folder, f"weights must fit config.json.*{message}", threshold=0.1)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            f"{QUERY}.ampere_module.context_module.mask_scores",
            r"query\.ampere_module\S+ is an ampere pattern",
        ),
        ("bert.embeddings.LayerNorm.accumulator", r"LayerNorm\.accumulator is a norm on its way to no-norm"),
    ],
)
def test_keys_that_have_no_fold(folder, key, message):
    save(folder, bert(), {key: torch.zeros(3)})
    refused(folder, message, method="topK", threshold=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruned_heads": {"0": [1]}}, r"pruned_heads \{'0': \[1\]\} of config\.json has no fold"),
        (
            {"layer_norm_type": "no_norm"},
            r"layer_norm_type 'no_norm' of config\.json has no fold; allowed: layer_norm",
        ),
        ({"architectures": ["os"]}, r"config\.json makes no model, architecture 'os'"),
        ({"architectures": ["logging"]}, r"config\.json makes no model, architecture 'logging'"),
        ({"architectures": ["PreTrainedModel"]}, r"config\.json makes no model"),
        ({"architectures": []}, r"config\.json makes no model, architecture '\[\]'"),
        ({"architectures": {"a": 1}}, r"config\.json makes no model, architecture"),
        ({"pruning_method": ["topK"]}, r"method is \"\['topK'\]\"; pass method="),
        ({"num_attention_heads": 3}, r"config\.json makes no model, architecture 'BertFor.*multiple"),
    ],
)
def test_configs_that_make_no_model(folder, settings, message):
    masked(folder, {}, **settings)
    refused(folder, message, threshold=0.1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"gelu_patch": True}, r"gelu_patch True of sparse_args\.json has no fold"),
        ({"rewind_model_name_or_path": "x"}, r"rewind_model_name_or_path 'x' of"),
        (
            {"attention_pruning_method": "l0", "dense_pruning_method": "topK:1d"},
            r"the methods \['l0', 'topK'\]",
        ),
        (
            {"attention_pruning_method": "topK", "linear_min_parameters": "no"},
            r"linear_min_parameters .*'no'",
        ),
        ({"attention_pruning_method": "topK", "final_threshold": "x"}, r"threshold is 'x'"),
        ({"attention_pruning_method": "disabled"}, r"method is None"),
    ],
)
def test_settings_of_nn_pruning_that_have_no_fold(folder, args, message):
    patched(folder, {(QUERY, 0): torch.zeros(2, 2)}, args=args)
    refused(folder, message)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never-made-by-fineprune"),))


def test_files_that_cannot_be_read(folder):
    refused(folder, r"config\.json: no JSON object, name a saved model: ")
    masked(folder, {})
    weights = folder / "pytorch_model.bin"
    whole = weights.read_bytes()
    for content in (whole[:1000], b"", b"no pickle"):
        weights.write_bytes(content)
        refused(folder, r"pytorch_model\.bin: broken or no dict of tensors", threshold=0.1)
    for value in ({"a": Malicious()}, {"a": 1}, [torch.zeros(1)], bert()):
        torch.save(value, weights)
        refused(
            folder, r"pytorch_model\.bin: broken or no dict of tensors; copy or save it again", threshold=0.1
        )
    assert not Path("/tmp/never-made-by-fineprune").exists()
    weights.unlink()
    refused(folder, r"run: no weights; allowed: model\.safetensors, pytorch_model\.bin", threshold=0.1)
    (folder / "model.safetensors").write_bytes(b"short")
    refused(folder, r"model\.safetensors: broken", threshold=0.1)
    for content in ("[1]", "{", "\xff"):
        (folder / "config.json").write_bytes(content.encode("latin-1"))
        refused(folder, r"config\.json: no JSON object")
