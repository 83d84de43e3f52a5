"""A compact folder opens through plain `from_pretrained` as an ordinary model, or not at all."""

import copy
import json
import shutil

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

import fineprune
from fineprune import FinepruneError, PruningConfig, PruningTrainer, save_compact
from fineprune.checkpoint import packing
from fineprune.checkpoint.loading import to_dense
from fineprune.checkpoint.transformers_hook import CompactConfig, staying_packed
from fineprune.pruning.probe import probe_inputs

WEIGHTS = "model.safetensors"


def load(folder, **kwargs):
    return AutoModelForSequenceClassification.from_pretrained(folder, **kwargs)


def rows(count=8):
    from datasets import Dataset

    inputs = [[index, 5, 6] for index in range(count)]
    return Dataset.from_dict({"input_ids": inputs, "labels": [index % 2 for index in range(count)]})


def arguments(folder, **values):
    from transformers import TrainingArguments

    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "save_steps": 2,
        "eval_steps": 2,
        "eval_strategy": "steps",
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
    }
    return TrainingArguments(**(settings | values))


# ---- an ordinary model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16", torch.float64])
@pytest.mark.parametrize("shards", ["50GB", "6KB"])
def test_the_asked_type_holds_for_every_parameter(dtype, shards, make_pruned, same_weights, tmp_path):
    model = make_pruned()
    save_compact(model, tmp_path / "m", max_shard_size=shards)
    loaded = load(tmp_path / "m", dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    assert same_weights(copy.deepcopy(model).to(wanted), loaded)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_layers_that_transformers_keeps_in_float32(dtype, make_pruned, auto_class, same_weights, tmp_path):
    model = make_pruned("t5")
    save_compact(model, tmp_path / "m")
    model.save_pretrained(tmp_path / "plain")
    loaded = [auto_class("t5").from_pretrained(tmp_path / name, dtype=dtype) for name in ("m", "plain")]
    assert same_weights(*loaded)


def test_a_device_map(compact, make_pruned, same_weights, tmp_path):
    model = make_pruned()
    loaded = load(compact, device_map="cpu")
    assert same_weights(model, loaded)
    again = save_compact(loaded, tmp_path / "again")
    assert same_weights(model, load(again.folder, device_map={"": "cpu"}))


def test_what_can_be_done_with_it(compact, make_pruned, same_weights, same_answers):
    model, loaded = make_pruned(), load(compact)
    assert not loaded.is_quantized
    assert not getattr(loaded.config, "_is_quantized", False)
    assert not loaded.training
    twin = copy.deepcopy(loaded)
    assert same_weights(model, twin)
    half = twin.half()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert same_weights(copy.deepcopy(model).half(), half)
    assert half.float().dtype == torch.float32
    assert same_answers(model, loaded.to("cpu").to(torch.float64).to(torch.float32))
    assert type(loaded) is BertForSequenceClassification
    assert {type(module) for module in loaded.modules()} == {type(module) for module in model.modules()}


def test_a_training_step_changes_it_as_any_model(compact, make_pruned, same_weights, tmp_path):
    models = [make_pruned(), load(compact)]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**probe_inputs(model), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    assert same_weights(*models)
    models[1].save_pretrained(tmp_path / "again")
    assert same_weights(models[0], load(tmp_path / "again"))


def test_it_can_be_pruned_again(compact, tmp_path):
    model = load(compact)
    pruner = fineprune.prepare(model, PruningConfig("magnitude", density=0.05, warmup=0, cooldown=1), 2)
    pruner.step()
    pruner.step()
    assert save_compact(pruner, tmp_path / "less").density < 0.06
    fineprune.finalize(model).save_pretrained(tmp_path / "same")
    assert fineprune.summary(load(tmp_path / "same")).density < 0.06


def test_trainer_goes_on_from_its_own_compact_checkpoints(compact, same_weights, tmp_path):
    """Body frozen, so that its matrices stay sparse and a checkpoint holds them packed."""
    from transformers import Trainer

    def trainer(**values):
        model = load(compact)
        model.bert.requires_grad_(False)
        return Trainer(
            model, arguments(tmp_path / "out", **values), train_dataset=rows(), eval_dataset=rows()
        )

    first = trainer(load_best_model_at_end=True, metric_for_best_model="loss")
    first.train()
    stored = load_file(tmp_path / "out/checkpoint-2" / WEIGHTS)
    assert sum(packing.is_blob(tensor) for tensor in stored.values()) == 12
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert same_weights(resumed.model, load(tmp_path / "out/checkpoint-4"))


def test_pruning_trainer_goes_on_too(compact, same_weights, tmp_path):
    def trainer(folder):
        config = PruningConfig("movement", density=0.05, targets=["query", "key"])
        return PruningTrainer(
            load(compact),
            arguments(tmp_path / folder),
            pruning=config,
            train_dataset=rows(),
            eval_dataset=rows(),
        )

    straight, resumed = trainer("a"), trainer("b")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    assert same_weights(straight.model, resumed.model)


def test_load_state_dict_takes_blobs_and_plain_weights(compact, make_pruned, make_dense, same_weights):
    loaded, other = load(compact), make_dense(num_labels=2)
    stored = load_file(compact / WEIGHTS)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert not any(loaded.load_state_dict(stored))
    assert same_weights(make_pruned(), loaded)
    assert stored["bert.encoder.layer.0.attention.self.query.weight"].ndim == 1  # the caller's own dict
    loaded.load_state_dict(other.state_dict())
    assert same_weights(other, loaded)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="refuses other sizes where a quantizer loads"
)
def test_a_new_head_where_it_is_asked_for(compact, make_pruned, same_weights):
    loaded = load(compact, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.classifier.out_features == 5
    assert same_weights(make_pruned().bert, loaded.bert)


def test_the_body_alone_is_saved_as_its_config_says(compact, same_weights, tmp_path):
    model = load(compact)
    body = model.base_model
    for place in ("packed", "dense"):
        body.save_pretrained(tmp_path / place)
        config = json.loads((tmp_path / place / "config.json").read_text())
        assert ("quantization_config" in config) == (place == "packed")
        assert same_weights(body, type(body).from_pretrained(tmp_path / place))
        to_dense(model)


def test_staying_packed_ends_with_its_block(compact):
    with staying_packed():
        packed = load(compact)
    kinds = [type(module) for model in (packed, load(compact)) for module in model.modules()]
    assert kinds.count(packing.PackedLinear) == 12
    assert next(packed.parameters()).dtype == torch.float32


def test_no_pickle_is_written(compact, tmp_path):
    load(compact).save_pretrained(tmp_path / "again")
    written = [*compact.iterdir(), *(tmp_path / "again").iterdir()]
    assert {path.suffix for path in written} == {".json", ".md", ".safetensors"}


# ---- or not at all --------------------------------------------------------------------------------------


def shard(folder):
    return sorted(folder.glob("*-of-*.safetensors"))[1]


DAMAGE = {
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-20]), "it is cut off or damaged"),
    "flipped": (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x5a"), "not match its checksum"),
    "rewritten": (lambda file: save_file(load_file(file), file, {"format": "pt"}), "no fineprune manifest"),
    "other": (lambda file: shutil.copy(file.with_name("other"), file), "belongs to another checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_damaged_shards(kind, auto, make_pruned, tmp_path):
    damage, message = DAMAGE[kind]
    folder = save_compact(make_pruned(), tmp_path / "m", max_shard_size="6KB").folder
    another = save_compact(make_pruned(), tmp_path / "o", values="float16", max_shard_size="6KB").folder
    shutil.copy(shard(another), folder / "other")
    damage(shard(folder))
    with pytest.raises(FinepruneError, match=message) as caught:
        auto.from_pretrained(folder)
    assert shard(folder).name in str(caught.value)


def test_a_missing_shard(make_pruned, tmp_path):
    folder = save_compact(make_pruned(), tmp_path / "m", max_shard_size="6KB").folder
    gone = shard(folder)
    gone.unlink()
    with pytest.raises(FinepruneError, match=rf"{gone.name}: cannot be read.*No such file"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {key: name for key, name in content["weight_map"].items() if name != gone.name}
    index.write_text(json.dumps(content))
    with pytest.raises(FinepruneError, match=r"is missing \(\d+ tensors in all\)"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, r"encoder.layer.2.attention.self.query: config.json asks for it"),
        ({"hidden_size": 32}, r"model.safetensors: bert.encoder.*array of shape \(\d+, 16\), expected"),
        ({"intermediate_size": 64}, r"holds an array of shape \(32, 16\), expected \(64, 16\)"),
        ({"quantization_config": {"version": 2}}, r"format version 2 .*reads version 1: upgrade it"),
        ({"quantization_config": {"version": 2, "values": "int2"}}, "format version 2 .*upgrade it"),
        ({"quantization_config": {"sparse": 1}}, r"with \['sparse'\] further settings"),
        ({"quantization_config": {"values": "int2"}}, "values='int2'"),
        ({"quantization_config": {"embeddings": 7}}, "embeddings=7: allowed are keep"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_a_config_of_another_model(change, message, auto, compact, change_json):
    change_json(compact / "config.json", **change)
    with pytest.raises(FinepruneError, match=message):
        auto.from_pretrained(compact)


@pytest.mark.parametrize("change", [{"vocab_size": 60}, {"max_position_embeddings": 40}])
def test_a_config_with_other_tables(change, compact, change_json):
    change_json(compact / "config.json", **change)
    # transformers' own error, or where it leaves that to the quantizer, as the oldest does, ours.
    with pytest.raises((RuntimeError, FinepruneError), match=r"ignore_mismatched_sizes|the checkpoint holds"):
        load(compact)


def test_pickled_weights(compact):
    torch.save(load_file(compact / WEIGHTS), compact / "pytorch_model.bin")
    (compact / WEIGHTS).unlink()
    with pytest.raises(FinepruneError, match=r"pytorch_model.bin: .* stored as safetensors only"):
        load(compact)


def test_plain_weights_under_a_compact_config(compact, make_pruned, change_json):
    """As where someone saved over one half of the folder."""
    config = (compact / "config.json").read_text()
    make_pruned().save_pretrained(compact)
    (compact / "config.json").write_text(config)
    with pytest.raises(FinepruneError, match="has no fineprune manifest"):
        load(compact)


def test_a_model_is_not_packed_while_it_loads(make_pruned, tmp_path):
    make_pruned().save_pretrained(tmp_path / "plain")
    with pytest.raises(FinepruneError, match="not packed while it loads; use fineprune"):
        load(tmp_path / "plain", quantization_config=CompactConfig())
