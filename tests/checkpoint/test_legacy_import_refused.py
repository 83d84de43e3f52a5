"""What of another program's checkpoint has no fold, or is broken, is said in one line."""

from pathlib import Path

import pytest
import torch

from fineprune.checkpoint.legacy_import import import_checkpoint
from fineprune.errors import FinepruneError

QUERY = "bert.encoder.layer.0.attention.self.query"
UP = "bert.encoder.layer.0.intermediate.dense"


def refused(folder, message, **arguments):
    with pytest.raises(FinepruneError, match=message) as error:
        import_checkpoint(folder, **arguments)
    assert "\n" not in str(error.value)


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
def test_methods_and_thresholds_that_cannot_be(folder, arguments, message, foreign):
    foreign.masked(folder, {})
    refused(folder, message, **arguments)


@pytest.mark.parametrize("threshold", [1.0, -0.1, None])
def test_thresholds_that_soft_movement_cannot_have(folder, threshold, foreign):
    foreign.masked(folder, {}, "sigmoied_threshold")
    refused(
        folder,
        rf"threshold is {threshold}; .* for sigmoied_threshold 0 <= threshold < 1, tau",
        threshold=threshold,
    )


def test_ordinary_checkpoints(folder, foreign):
    foreign.save(folder, foreign.bert(), {})
    refused(
        folder,
        r"run: an ordinary checkpoint, no key ends in mask_scores; .* takes it without --method and --thres",
    )
    foreign.save(folder, foreign.bert(), {}, model_type="masked_bert", pruning_method="topK")  # bertarized
    refused(folder, r"an ordinary checkpoint.*a masked_bert once", threshold=0.1)


def test_scores_that_do_not_fit(folder, foreign):
    for score in (torch.zeros(16, 8), torch.zeros(16), torch.zeros(16, 16, 1), torch.zeros(0, 16)):
        foreign.masked(folder, {QUERY: score})
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
        foreign.patched(folder, scores)
        refused(folder, r"mask_scores of .*query: .* for a weight \[16, 16\]", method="topK", threshold=0.1)


def test_scores_that_are_not_numbers(folder, foreign):
    foreign.masked(folder, {UP: torch.full((32, 16), float("nan"))})
    refused(folder, r"mask_scores of .*layer\.0\.intermediate\.dense are NaN", threshold=0.1)


def test_scores_without_a_weight_and_weights_without_scores(folder, foreign):
    model, _ = foreign.masked(folder, {"bert.encoder.layer.7.output.dense": torch.zeros(2, 2)})
    refused(
        folder,
        r"layer\.7\.output\.dense\.mask_scores has no matrix .*7\.output\.dense\.weight",
        threshold=0.1,
    )
    foreign.masked(folder, {"bert.embeddings.LayerNorm": torch.zeros(16)})
    refused(folder, r"LayerNorm\.mask_scores has no matrix", threshold=0.1)
    foreign.save(folder, model, {f"{QUERY}.mask_scores": torch.zeros(16, 16)}, pruning_method="topK")
    refused(folder, r"layer\.0\.attention\.self\.key has no mask_scores as others have", threshold=0.1)


def test_scores_that_safetensors_may_have_dropped(folder, foreign):
    foreign.patched(folder, {(UP, 0): torch.zeros(32)}, "safetensors")
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
def test_weights_that_do_not_fit(folder, change, message, foreign):
    state = foreign.bert().state_dict()
    change(state)
    foreign.masked(folder, {}, state=state)
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
def test_keys_that_have_no_fold(folder, key, message, foreign):
    foreign.save(folder, foreign.bert(), {key: torch.zeros(3)})
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
def test_configs_that_make_no_model(folder, settings, message, foreign):
    foreign.masked(folder, {}, **settings)
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
def test_settings_of_nn_pruning_that_have_no_fold(folder, args, message, foreign):
    foreign.patched(folder, {(QUERY, 0): torch.zeros(2, 2)}, args=args)
    refused(folder, message)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never-made-by-fineprune"),))


def test_files_that_cannot_be_read(folder, foreign):
    refused(folder, r"config\.json: no JSON object, name a saved model: ")
    foreign.masked(folder, {})
    weights = folder / "pytorch_model.bin"
    whole = weights.read_bytes()
    for content in (whole[:1000], b"", b"no pickle"):
        weights.write_bytes(content)
        refused(folder, r"pytorch_model\.bin: broken or no dict of tensors", threshold=0.1)
    for value in ({"a": Malicious()}, {"a": 1}, [torch.zeros(1)], foreign.bert()):
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
