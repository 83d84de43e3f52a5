"""Pruned models of a few thousand weights, and what to ask them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fineprune.pruning.targets import find_targets
from fineprune_runtime import native

BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
MODERN = {**BERT, "num_hidden_layers": 3, "local_attention": 9, "global_attn_every_n_layers": 2}
DEBERTA = {
    **BERT,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "type_vocab_size": 2,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}

# What the engine runs whole: class and settings.
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", BERT),
    "distilbert": ("DistilBertForQuestionAnswering", DISTIL),
    "electra": ("ElectraForTokenClassification", {**BERT, "embedding_size": 8}),
    "modernbert": ("ModernBertForSequenceClassification", MODERN),
    "deberta-v2": ("DebertaV2ForSequenceClassification", DEBERTA),
    "camembert": ("CamembertForSequenceClassification", BERT),
    "mpnet": ("MPNetForSequenceClassification", BERT),
    "roberta": ("RobertaForMaskedLM", {**BERT, "hidden_act": "gelu_new"}),
    "xlm-roberta": ("XLMRobertaForTokenClassification", {**BERT, "hidden_act": "relu"}),
}
# And of what it runs single layers.
SINGLE: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("AlbertForSequenceClassification", {**BERT, "embedding_size": 8}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "bos_token_id": 1, "eos_token_id": 1},
    ),
    "t5": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 0}),
    "vit": ("ViTForImageClassification", {**BERT, "image_size": 16, "patch_size": 8}),
}


@pytest.fixture
def engine() -> None:
    """For tests that need the engine's native library."""
    if not native.levels():
        pytest.skip("the engine has no native library here")


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine for which there is no native library."""
    monkeypatch.setattr(native, "levels", lambda: ())
    monkeypatch.setattr(native, "dtypes", lambda level=None: ())


@pytest.fixture(params=list(WHOLE))
def whole(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(SINGLE))
def single(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """`make("bert", density=0.1, **config)`: always the same weights, spread wide, in evaluation mode, the
    smallest of each matrix set to 0. `kind` is another class for it.
    """

    @torch.no_grad()
    def build(name: str, density: float = 0.1, kind: str | None = None, **settings: Any) -> Any:
        import transformers

        usual, config = {**WHOLE, **SINGLE}[name]
        cls = getattr(transformers, kind or usual)
        torch.manual_seed(0)
        given = {**config, "vocab_size": 50, "initializer_range": 0.3, "pad_token_id": 0} | settings
        model = cls(cls.config_class(**given)).eval()
        for module in find_targets(model).values():
            size = module.weight.abs()
            module.weight[size < size.flatten().quantile(1 - density)] = 0
        return model

    return build


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[torch.Tensor]]:
    """`ask(model, inputs)`: its outputs without grad, those for padding left out: the engine gives none."""
    from fineprune.pruning.probe import outputs

    def answers(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
        mask = inputs.get("attention_mask")
        found = outputs(model, inputs)
        if mask is None or model.config.is_encoder_decoder or mask.ndim != 2:
            return found
        return [entry[mask == 1] if entry.shape[:2] == mask.shape else entry for entry in found]

    return answers


@pytest.fixture(scope="session")
def texts() -> Callable[..., dict[str, torch.Tensor]]:
    """`texts(2, 9, padded=3)`: token ids of that shape, the first text padded by so many."""

    def build(batch: int, length: int, padded: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(batch * 100 + length)
        ids = torch.randint(2, 50, (batch, length), generator=generator)
        mask = torch.ones_like(ids)
        if padded:
            ids[0, -padded:] = 0
            mask[0, -padded:] = 0
        return {"input_ids": ids, "attention_mask": mask}

    return build
