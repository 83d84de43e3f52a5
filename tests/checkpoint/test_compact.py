"""What `save_compact` writes is the model, whole and small, or nothing at all."""

import copy
import json
import os

import pytest
import torch
import transformers
from architectures.models import make
from support import tiny_bert
from transformers import AutoModel, AutoModelForSequenceClassification

import fineprune
from fineprune import (
    FinepruneError,
    FinepruneWarning,
    PruningConfig,
    _files,
    calibrate,
    finalize,
    prepare,
    save_compact,
    summary,
)
from fineprune.checkpoint import compact, loading, packing
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.probe import probe_inputs
from fineprune_runtime import codec

FILES = {"README.md", "config.json", "fineprune.json", "model.safetensors"}


def trained(model, config, steps=4, rate=1e-2):
    """A prepared model after all its steps, trained to make its outputs small."""
    pruner = prepare(model.train(), config, steps)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(rate))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(**probe_inputs(model))[0].square().mean() + pruner.penalty()).backward()
        optimizer.step()
        pruner.step()
    model.eval()
    return pruner


def names(folder):
    return {path.name for path in folder.iterdir()}


# ---- the same model -------------------------------------------------------------------------------------


def test_masked_finalized_compact_reloaded_and_saved_again_answer_alike(
    architecture, make_dense, auto_class, same_answers, same_weights, tmp_path
):
    model = make_dense(architecture)
    config = PruningConfig("movement", density=0.1, warmup=1, cooldown=1)
    pruner = trained(model, config)
    saved = save_compact(pruner, tmp_path / "m", max_shard_size="6KB")
    assert saved.difference == 0
    assert len(list(saved.folder.glob("*.safetensors"))) > 1
    final = finalize(copy.deepcopy(model))
    assert same_answers(model, final)

    auto = auto_class(architecture)
    loaded = auto.from_pretrained(saved.folder)
    assert type(loaded) is type(final)
    assert same_weights(final, loaded)
    assert same_answers(model, loaded)

    final.save_pretrained(tmp_path / "plain")
    bodies = []
    for folder in (saved.folder, tmp_path / "plain"):
        torch.manual_seed(0)  # a pooler that the checkpoint lacks is random
        bodies.append(AutoModel.from_pretrained(folder))
    assert same_weights(*bodies)
    assert same_answers(*bodies)

    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").stat().st_size < saved.bytes
    assert same_weights(final, auto.from_pretrained(tmp_path / "again"))

    packed = loading.load(saved.folder, packed=True)
    assert any(isinstance(module, packing.PackedLinear) for module in packed.modules())
    assert same_answers(final, packed)
    packed.save_pretrained(tmp_path / "packed")
    assert same_weights(final, loading.load(tmp_path / "packed"))


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "MPNet"])
def test_a_body_without_a_pooler(kind, same_answers, tmp_path):
    settings = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(vocab_size=20, max_position_embeddings=40, **settings)
    model = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False).eval()
    for layer in model.encoder.layer:
        layer.output.dense.weight.data[:, ::2] = 0
    save_compact(model, tmp_path)
    assert same_answers(model, loading.load(tmp_path))


@pytest.mark.parametrize("kind", ["pruner", "prepared", "finalized", "by hand"])
def test_what_may_be_saved(kind, make_dense, make_pruned, same_answers, tmp_path):
    model = make_pruned() if kind == "by hand" else make_dense()
    given = model
    if kind != "by hand":
        pruner = trained(model, PruningConfig("magnitude", density=0.1))
        given = {"pruner": pruner, "prepared": model, "finalized": finalize}[kind]
        given = given(model) if kind == "finalized" else given
    before = copy.deepcopy(model.state_dict())
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.bert.encoder.train()  # modes stay as they are, part by part
    saved = save_compact(given, tmp_path / "m")
    assert model.bert.encoder.training
    assert not model.training
    assert "quantization_config" not in model.config.to_dict()
    assert not hasattr(model, "hf_quantizer")
    after = model.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert any(masked_modules(model)) == (kind in ("pruner", "prepared"))
    assert abs(saved.density - 0.1) < 0.002
    assert same_answers(model, AutoModelForSequenceClassification.from_pretrained(saved.folder))
    model.train()(**probe_inputs(model)).logits.sum().backward()  # and training can go on
    about = json.loads((saved.folder / "fineprune.json").read_text())
    assert (about["pruning"] or {}).get("method") == ("magnitude" if kind == "pruner" else None)


def test_continuous_gates_are_folded(make_dense, same_answers, tmp_path):
    model = make_dense()
    pruner = prepare(model, PruningConfig("l0", density=0.3), 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for target in pruner.targets:
            target.masked.scores.normal_(0, 2, generator=generator)
    model.eval()
    gates = torch.cat(
        [target.masked.fold(torch.ones_like(target.weight)).flatten() for target in pruner.targets]
    )
    assert ((gates > 0) & (gates < 1)).any()
    with pytest.warns(FinepruneWarning, match="pruning is at step 0 of 4"):
        save_compact(model, tmp_path / "m")
    assert same_answers(model, AutoModelForSequenceClassification.from_pretrained(tmp_path / "m"))


def test_a_mask_multiplied_in_costs_no_room(make_dense, make_pruned, tmp_path):
    """It leaves -0 where a weight was negative."""
    model, clean = make_dense(), make_pruned()
    with torch.no_grad():
        for weight, there in zip(model.parameters(), clean.parameters(), strict=True):
            weight.mul_((there != 0) | (there == weight))
    assert any((weight == 0)[weight.signbit()].any() for weight in model.parameters())
    assert save_compact(model, tmp_path / "m").bytes == save_compact(clean, tmp_path / "n").bytes


# ---- types ----------------------------------------------------------------------------------------------


def test_a_model_of_mixed_types_is_refused(make_pruned, tmp_path):
    model = make_pruned().to(torch.bfloat16)
    with torch.no_grad():
        model.classifier.float().weight.add_(1e-4)
    with pytest.raises(FinepruneError, match=r"classifier.weight: is torch.float32, .* cast the whole model"):
        save_compact(model, tmp_path / "m")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": "float61"}, r"values='float61': did you mean float16\? allowed are float32, float16"),
        ({"values": "keep"}, "values='keep': .*allowed are float32, float16, bfloat16, int8"),
        ({"embeddings": "int5"}, r"embeddings='int5': did you mean int[48]\? allowed are keep"),
        ({"embeddings": "float32"}, "embeddings='float32'"),
    ],
)  # fmt: skip
def test_unknown_types(given, message, make_pruned, tmp_path):
    with pytest.raises(FinepruneError, match=message):
        save_compact(make_pruned(), tmp_path / "m", **given)
    assert names(tmp_path) == set()


def test_a_value_too_large_for_float16_is_named(make_pruned, tmp_path):
    model = make_pruned()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 4] = 1e5
    with pytest.raises(FinepruneError, match=r"layer.1.output.dense.weight: a value of 100000 does not fit"):
        save_compact(model, tmp_path / "m", values="float16")
    assert names(tmp_path) == set()


# ---- what is refused ------------------------------------------------------------------------------------


def test_nothing_is_sparse(make_dense, tmp_path):
    model = make_dense()
    with pytest.raises(FinepruneError, match="BertForSequenceClassification has nothing to pack"):
        save_compact(model, tmp_path / "m")
    assert names(tmp_path) == set()
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")


def test_no_model(tmp_path, compact):
    for value in (torch.nn.Linear(2, 2), None):
        with pytest.raises(FinepruneError, match=f"model={type(value).__name__}: a transformers model"):
            save_compact(value, tmp_path / "m")
    with pytest.raises(FinepruneError, match="load it without packed=True"):
        save_compact(loading.load(compact, packed=True), tmp_path / "m")


@pytest.mark.parametrize("place", ["file", "file/below", "full", "above", "."])
def test_no_place(place, make_pruned, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("precious")
    for name in ("full", "above/checkpoint-5"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "data.csv").write_text("precious")
    (tmp_path / "above/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    message = {
        "file": "file: is a file",
        "file/below": "file/below: cannot be made",
        "full": "full: not empty, and no model that could be replaced",
        "above": "above: holds other folders, for example checkpoint-5",
        ".": r"\.: not empty, and no model",
    }[place]
    with pytest.raises(FinepruneError, match=message):
        save_compact(make_pruned(), place)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_stays_alive(make_pruned, compact, monkeypatch):
    monkeypatch.chdir(compact)
    with pytest.raises(FinepruneError, match="holds, the current folder"):
        save_compact(make_pruned(), ".")
    assert names(compact) == FILES


def test_a_link_is_followed(make_pruned, compact, tmp_path):
    (tmp_path / "link").symlink_to(compact)
    saved = save_compact(make_pruned(), tmp_path / "link", values="int8")
    assert saved.folder == tmp_path / "link"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == {"compact", "link"}
    assert json.loads((compact / "fineprune.json").read_text())["values"] == "int8"


@pytest.mark.parametrize(("scores", "value"), [("scores", "nan"), ("dense_scores", "high")])
def test_scores_are_numbers(scores, value, make_pruned, tmp_path):
    value = float(value) if value == "nan" else value
    with pytest.raises(FinepruneError, match=f"{scores}: f1 is {value!r}; give a finite number"):
        save_compact(make_pruned(), tmp_path / "m", **{scores: {"f1": value}})
    assert names(tmp_path) == set()


def test_numbers_that_are_none(make_pruned, tmp_path):
    model = make_pruned()
    with torch.no_grad():
        model.classifier.weight.fill_(3e38)
    with pytest.raises(FinepruneError, match="compare outputs on with nan or inf; nothing was saved"):
        save_compact(model, tmp_path / "m")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(
        FinepruneError, match=r"classifier.bias: 1 of its \d .* differs from the model by nan: .*diverged"
    ):
        save_compact(model, tmp_path / "m")
    assert names(tmp_path) == set()


def test_inputs_that_do_not_fit(make_pruned, tmp_path):
    model = make_pruned()
    with pytest.raises(FinepruneError, match=r"does not take the inputs to compare outputs on .*probe="):
        save_compact(model, tmp_path / "m", probe={"pixels": torch.ones(1)})
    save_compact(model, tmp_path / "m", probe={"input_ids": torch.tensor([[1, 2]])})


# ---- whole or not at all --------------------------------------------------------------------------------


@pytest.mark.parametrize("crash", ["write_json", "from_pretrained", "replace_folder"])
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_leaves_what_was_there(crash, before, make_pruned, tmp_path, monkeypatch):
    model, place = make_pruned(), tmp_path / "m"
    if before:
        save_compact(model, place)
    there = {path: path.read_bytes() for path in place.glob("*")}

    def crashing(*_, **__):
        raise KeyboardInterrupt

    where = {"from_pretrained": type(model), "replace_folder": _files}.get(crash, compact)
    monkeypatch.setattr(where, crash, crashing)
    with pytest.raises(KeyboardInterrupt):
        save_compact(model, place, values="int8")
    assert {path: path.read_bytes() for path in place.glob("*")} == there
    assert names(tmp_path) == ({"m"} if before else set())
    assert not hasattr(model, "hf_quantizer")


def test_a_kill_before_does_not_stand_in_the_way(make_pruned, tmp_path):
    (tmp_path / ".m.0123abcd.writing").mkdir()
    save_compact(make_pruned(), tmp_path / "m")
    assert names(tmp_path) == {"m"}
    assert names(tmp_path / "m") == FILES


@pytest.mark.parametrize("values", ["float32", "int8"])
def test_what_is_written_is_compared(values, make_pruned, monkeypatch, tmp_path):
    real = codec.encode

    def wrong(array, kind="float32"):
        array = array.copy()
        where = array.reshape(-1).nonzero()[0]
        if kind == "float32":
            array.reshape(-1)[where[5]] *= 1.0001
        else:
            array = array[::-1]  # each row in another's place
        return real(array, kind)

    monkeypatch.setattr(codec, "encode", wrong)
    with pytest.raises(FinepruneError, match=r"query.weight: the written file differs from the model by"):
        save_compact(make_pruned(), tmp_path / "m", values=values)
    assert names(tmp_path) == set()


def test_a_type_that_is_too_coarse_is_named(tmp_path):
    model = tiny_bert(hidden_size=768, num_hidden_layers=1, intermediate_size=8)
    with torch.no_grad():  # a level of int4 is 30 / 7 standard deviations of the rest, which all round to 0
        model.bert.embeddings.word_embeddings.weight[:, 0] = 30 * 0.02
        model.bert.encoder.layer[0].attention.self.query.weight[1:] = 0
    with pytest.raises(
        FinepruneError, match=r"word_embeddings.weight: int4 is too coarse.*embeddings='int8'"
    ):
        save_compact(model, tmp_path / "m", embeddings="int4")
    assert names(tmp_path) == set()


# ---- what is said of it ---------------------------------------------------------------------------------


def test_what_fineprune_json_says(make_pruned, tmp_path):
    model = make_pruned()
    saved = save_compact(
        model,
        tmp_path / "new" / "m",
        values="int8",
        embeddings="int4",
        scores={"accuracy": torch.tensor(0.5)},
        command="fineprune run x.yaml",
        config=PruningConfig("movement", density=0.1),
    )
    assert names(saved.folder) == FILES
    about = json.loads((saved.folder / "fineprune.json").read_text())
    left = summary(model)
    weights = [path.stat().st_size for path in saved.folder.glob("*.safetensors")]
    assert about == {
        "fineprune": fineprune.__version__,
        "transformers": transformers.__version__,
        "architecture": "BertForSequenceClassification",
        "values": "int8",
        "embeddings": "int4",
        "density": left.density,
        "kept": left.kept,
        "total": 2 * (4 * 16 * 16 + 2 * 16 * 32),
        "parameters": model.num_parameters(),
        "bytes": sum(weights),
        "dense_bytes": 4 * model.num_parameters(),
        "pruning": PruningConfig("movement", density=0.1).to_dict(),
        "scores": {"accuracy": 0.5},
        "dense_scores": None,
        "command": "fineprune run x.yaml",
        "output_difference": saved.difference,
    }
    assert saved == (saved.folder, about["bytes"], about["dense_bytes"], left.density, saved.difference)
    assert "accuracy | 0.5000 | not measured" in (saved.folder / "README.md").read_text()


def test_tied_weights_count_once_and_the_tokenizer_comes_along(make_pruned, tmp_path):
    from transformers import AutoTokenizer, BertTokenizer

    model = make_pruned("gpt2")
    words = BertTokenizer(vocab={word: index for index, word in enumerate(["[PAD]", "[UNK]", "a"])})
    saved = save_compact(model, tmp_path / "m", tokenizer=words)
    assert saved.dense_bytes == 4 * model.num_parameters()
    assert AutoTokenizer.from_pretrained(saved.folder)("a")["input_ids"] == words("a")["input_ids"]
    assert os.path.getsize(saved.folder / "model.safetensors") == saved.bytes


def test_frequencies_that_were_cast_with_the_model(tmp_path):
    """A model makes them in float32 when it is loaded, whatever its type."""
    model = make("Llama").to(torch.bfloat16)
    calibrate(model, [probe_inputs(model, 12)], density=0.3, method="magnitude")
    assert model.model.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert save_compact(model, tmp_path / "m").difference <= 1e-6
