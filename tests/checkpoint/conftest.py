"""Pruned models of a few thousand weights, of nine architectures, and how two of them are compared."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny_bert

from fineprune.checkpoint.model_files import write_checksums
from fineprune.pruning.targets import find_targets

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 50}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}

# class, auto class, settings
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "AutoModelForSequenceClassification", SMALL),
    "roberta": ("RobertaForTokenClassification", "AutoModelForTokenClassification", SMALL),
    "distilbert": ("DistilBertForQuestionAnswering", "AutoModelForQuestionAnswering", DISTIL),
    "electra": (
        "ElectraForSequenceClassification",
        "AutoModelForSequenceClassification",
        {**SMALL, "embedding_size": 8},
    ),
    "albert": (
        "AlbertForSequenceClassification",
        "AutoModelForSequenceClassification",
        {**SMALL, "embedding_size": 8},
    ),
    "gpt2": ("GPT2LMHeadModel", "AutoModelForCausalLM", GPT2),
    "llama": ("LlamaForCausalLM", "AutoModelForCausalLM", {**SMALL, "num_key_value_heads": 1}),
    "t5": (
        "T5ForConditionalGeneration",
        "AutoModelForSeq2SeqLM",
        {**T5, "decoder_start_token_id": 0, "tie_word_embeddings": True},
    ),
    "vit": (
        "ViTForImageClassification",
        "AutoModelForImageClassification",
        {**SMALL, "image_size": 16, "patch_size": 8},
    ),
}


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def auto_class() -> Callable[[str], Any]:
    """`auto_class("bert")`: the Auto class that opens it."""

    def find(name: str) -> Any:
        import transformers

        return getattr(transformers, ARCHITECTURES[name][1])

    return find


@pytest.fixture(scope="session")
def make_dense() -> Callable[..., Any]:
    """`make_dense("bert", **config)`: always the same weights, spread wide, in evaluation mode."""

    def make(name: str = "bert", **settings: Any) -> Any:
        import transformers

        kind = getattr(transformers, ARCHITECTURES[name][0])
        torch.manual_seed(0)
        given = {**ARCHITECTURES[name][2], "initializer_range": 0.3, "pad_token_id": 0} | settings
        return kind(kind.config_class(**given)).eval()

    return make


@pytest.fixture(scope="session")
def make_pruned(make_dense: Callable[..., Any]) -> Callable[..., Any]:
    """The same with all but a tenth of each matrix set to zero by hand, the largest tenth."""

    @torch.no_grad()
    def make(name: str = "bert", **settings: Any) -> Any:
        model = make_dense(name, **settings)
        for module in find_targets(model).values():
            size = module.weight.abs()
            module.weight[size < size.flatten().quantile(0.9)] = 0
        return model

    return make


@pytest.fixture(scope="session")
def same_answers() -> Callable[[Any, Any], bool]:
    """Whether two models answer the probe batch with the same numbers, all of them."""
    from fineprune.pruning.probe import outputs, probe_inputs

    def same(one: Any, other: Any) -> bool:
        ours, theirs = outputs(one, probe_inputs(one)), outputs(other, probe_inputs(one))
        return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))

    return same


@pytest.fixture(scope="session")
def trained() -> Callable[..., Any]:
    """`trained(model, *parts)`: of the parameters so named, or of all, each value moves that is not zero."""

    @torch.no_grad()
    def train(model: Any, *parts: str) -> Any:
        for name, parameter in model.named_parameters():
            if not parts or any(part in name for part in parts):
                parameter.mul_(1.25)
                parameter[parameter.isnan()] = 0
        return model

    return train


@pytest.fixture
def base(make_dense: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with BERT before it was pruned."""
    make_dense().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def compact(make_pruned: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with BERT, packed."""
    from fineprune import save_compact

    return save_compact(make_pruned(), tmp_path / "compact").folder


@pytest.fixture(scope="session")
def change_json() -> Callable[..., None]:
    """`change_json(file, key=value)`; a dict changes what is inside. The manifest's checksum follows."""

    def change(file: Path, **values: Any) -> None:
        content = json.loads(file.read_text())
        for key, value in values.items():
            content[key] = content[key] | value if isinstance(value, dict) else value
        file.write_text(json.dumps(content))
        if any(b'"fineprune"' in path.read_bytes()[:9999] for path in file.parent.glob("*.safetensors")):
            write_checksums(file.parent)

    return change


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a checkpoint of another program will be saved."""
    return tmp_path / "run"


@pytest.fixture(scope="session")
def foreign() -> SimpleNamespace:
    """`bert()`, and how others save it: `masked(folder, scores)`, `patched(folder, scores)`, `save(...)`.

    The layouts are written out here, key by key, as the two programs save them.
    """
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

    def bert(kind=BertForSequenceClassification):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=8, num_labels=2 if kind is BertForQuestionAnswering else 3,
            initializer_range=0.5,
        )  # fmt: skip
        model = kind(config).eval()
        for module in find_targets(model).values():
            torch.nn.init.normal_(module.bias)  # so that a lost one shows
        return model

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
        high = {name: torch.full_like(module.weight, 9.0) for name, module in find_targets(model).items()}
        every = {} if method == "magnitude" else high | scores
        settings = {
            "model_type": "masked_bert", "architectures": ["Masked" + kind.__name__],
            "pruning_method": method, "mask_init": "constant", "mask_scale": 0.0,
        } | settings  # fmt: skip
        scores = {f"{name}.mask_scores": score for name, score in every.items()}
        return model, save(folder, model, scores, form, state, **settings)

    def patched(folder, scores, form="bin", args=None, **settings):
        """As nn_pruning saves a model it patched; `scores` by layer and side."""
        model = bert()
        keys = {
            f"{name}.mask_module.context_modules.{side}.mask_scores": s for (name, side), s in scores.items()
        }
        save(folder, model, keys, form, **settings)
        if args is not None:
            (folder / "sparse_args.json").write_text(json.dumps(args))
        return model, folder

    return SimpleNamespace(bert=bert, save=save, masked=masked, patched=patched)


@pytest.fixture(scope="session")
def bert_of() -> Callable[..., tuple[Any, Any]]:
    """`bert_of(tokens, head, rows, **config)`: a BERT, and its tokenizer, whose ids are positions."""

    def make(tokens: list[str], head: str = "ForSequenceClassification", rows: int = 16, **settings: Any):
        import transformers

        model = tiny_bert(head, vocab_size=rows, max_position_embeddings=40, **settings).eval()
        return model, transformers.BertTokenizer(vocab={token: index for index, token in enumerate(tokens)})

    return make
