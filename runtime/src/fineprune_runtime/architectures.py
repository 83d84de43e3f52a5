"""The models that the engine runs whole: their names and their settings.

Most are post-norm encoders with learned absolute positions (Devlin et al., 2019, arXiv:1810.04805): a layer
is attention, a sum and a norm, two matrices with an activation between them, a sum and a norm. MPNet's
attention has a bias by distance, DeBERTa's has products with relative positions (`disentangled`). ModernBERT
(Warner et al., 2024, arXiv:2412.13663) is pre-norm and gated, rotates queries and keys by position, and sees
only near tokens in most layers (`rotary`). Names are those of transformers, and `anatomy` tells their kinds.
Reads no files: works on a live model too.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from fineprune_runtime.anatomy import HEAD_COUNTS, Kind, by_kind, heads_of
from fineprune_runtime.errors import EngineError

Task = Literal["text", "tokens", "questions"]

# Tasks by the end of the class name in config.json.
TASKS: dict[str, Task] = {
    "ForSequenceClassification": "text",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "questions",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


class Architecture(NamedTuple):
    """One `model_type` of config.json."""

    base: str
    """The name of the base model in a model with a head."""
    layer: str
    """The name of the list of layers in the base model."""
    matrices: Mapping[Kind, str]
    """The names of a layer's matrices, relative to it."""
    norms: tuple[str, str]
    """The names of the norms that a layer has for its attention and its feed-forward, relative to it.

    They are after these, or before them where there is a `final_norm`.
    """
    pooled: tuple[str, str, str]
    """The head that classifies texts: first matrix, activation, second matrix."""
    words: str = "embeddings.word_embeddings"
    """The name of the table of words in the base model."""
    embedding_norm: str = "embeddings.LayerNorm"
    """The name of the norm of the embeddings in the base model."""
    final_norm: str | None = None
    """The name of the norm after the last layer, in the base model of a pre-norm encoder.

    Its first layer has no norm before the attention.
    """
    gated: bool = False
    """Whether FFN in has the rows of a gate below its own."""
    biases: Mapping[str, str] = {}
    """The settings that say whether there are biases, by the kind of a matrix or "norm"; others have them."""
    settings: Mapping[str, str] = {}
    """The names of settings in config.json that differ from BERT's, by BERT's name."""
    epsilon: float = 1e-12
    """Of the norms unless config.json gives one."""
    offset: bool = False
    """Positions count from the padding token's id plus 1; padding has that id itself."""
    padding: int = 0
    """The id of the padding token unless config.json gives one."""
    positions: bool = True
    """Whether the model has a table of positions."""
    types: bool = True
    """Whether the model has a table of token types."""
    bias: str | None = None
    """The name of the table of attention biases by distance, which all layers share, in the base model."""


_BERT = by_kind(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_BERT_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
_ROBERTA = Architecture(
    base="roberta",
    layer="encoder.layer",
    matrices=_BERT,
    norms=_BERT_NORMS,
    pooled=("classifier.dense", "tanh", "classifier.out_proj"),
    offset=True,
    padding=1,
)
_ITSELF = Architecture(
    base="bert",
    layer="encoder.layer",
    matrices=_BERT,
    norms=_BERT_NORMS,
    pooled=("bert.pooler.dense", "tanh", "classifier"),
)
ARCHITECTURES = {
    "bert": _ITSELF,
    "distilbert": Architecture(
        base="distilbert",
        layer="transformer.layer",
        matrices=by_kind(
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "ffn.lin1",
            "ffn.lin2",
        ),
        norms=("sa_layer_norm", "output_layer_norm"),
        pooled=("pre_classifier", "relu", "classifier"),
        settings={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        types=False,
    ),
    "electra": Architecture(
        base="electra",
        layer="encoder.layer",
        matrices=_BERT,
        norms=_BERT_NORMS,
        pooled=("classifier.dense", "gelu", "classifier.out_proj"),
    ),
    "mpnet": Architecture(
        base="mpnet",
        layer="encoder.layer",
        matrices=by_kind(
            "attention.attn.q",
            "attention.attn.k",
            "attention.attn.v",
            "attention.attn.o",
            "intermediate.dense",
            "output.dense",
        ),
        norms=("attention.LayerNorm", "output.LayerNorm"),
        pooled=("classifier.dense", "tanh", "classifier.out_proj"),
        offset=True,
        padding=1,
        types=False,
        bias="encoder.relative_attention_bias",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "data2vec-text": _ROBERTA._replace(base="data2vec_text"),
    "ernie": _ITSELF._replace(base="ernie", pooled=("ernie.pooler.dense", "tanh", "classifier")),
    "deberta-v2": Architecture(
        base="deberta",
        layer="encoder.layer",
        matrices=by_kind(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        norms=_BERT_NORMS,
        pooled=("pooler.dense", "gelu", "classifier"),
        epsilon=1e-7,
    ),
    "modernbert": Architecture(
        base="model",
        layer="layers",
        matrices=by_kind("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
        norms=("attn_norm", "mlp_norm"),
        pooled=("head.dense", "gelu", "classifier"),
        words="embeddings.tok_embeddings",
        embedding_norm="embeddings.norm",
        final_norm="final_norm",
        gated=True,
        biases={
            "QKV": "attention_bias",
            "O": "attention_bias",
            "FFN in": "mlp_bias",
            "FFN out": "mlp_bias",
            "norm": "norm_bias",
        },
        settings={"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"},
        epsilon=1e-5,
        positions=False,
        types=False,
    ),
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a config.json. Raises `EngineError` for one that cannot be run whole."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise EngineError(
            f"model_type is {kind!r}, which the engine cannot run whole; it runs {', '.join(ARCHITECTURES)}: "
            "run this model with torch"
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise EngineError(f"this {kind} is a decoder; the engine runs encoders: run it with torch")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise EngineError(
            f"position_embedding_type is {positions!r}, allowed is 'absolute': run this model with torch"
        )
    return ARCHITECTURES[kind]


def task(config: Mapping[str, Any]) -> Task:
    """Return the task of the model of a config.json. Raises `EngineError` for another kind of head."""
    if found := _task(config):
        return found
    raise EngineError(
        f"architectures in config.json is {config.get('architectures')!r}; it takes a model with the head of "
        f"a task, a class that ends in {', '.join(TASKS)}, or one that embeds sentences, with the files of "
        "sentence-transformers beside it: modules.json, 1_Pooling/config.json"
    )


def has_task(config: Mapping[str, Any]) -> bool:
    """Return whether the model of a config.json has the head of a task."""
    return _task(config) is not None


def _task(config: Mapping[str, Any]) -> Task | None:
    known = config.get("architectures")
    name = known[0] if isinstance(known, list) and known else None
    ends = (found for ending, found in TASKS.items() if isinstance(name, str) and name.endswith(ending))
    return next(ends, None)


def whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a whole number above 0 of a config.json, by BERT's name for it. Raises `EngineError`."""
    key = architecture(config).settings.get(name, name)
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EngineError(f"{key} in config.json is {value!r}, expected a whole number, 1 or more")
    return value


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `head_dim`, `activation` and `epsilon` of an `Encoder`. Raises `EngineError`."""
    known = architecture(config)
    key = known.settings.get("hidden_act", "hidden_act")
    activation = config.get(key, "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise EngineError(
            f"{key} is {activation!r}; the engine has {', '.join(_ACTIVATIONS)}: run this model with torch"
        )
    hidden, heads = whole(config, "hidden_size"), heads_of(config)
    if not heads:
        given = {name: config[name] for name in HEAD_COUNTS if name in config}
        raise EngineError(
            f"attention heads in config.json: {given or 'no number'}, expected a whole number, 1 or more"
        )
    if hidden % heads:
        raise EngineError(f"config.json: {heads} heads cannot share a hidden size of {hidden}")
    return {
        "head_dim": hidden // heads,
        "activation": _ACTIVATIONS[activation],
        "epsilon": epsilon(config),
        "pre_norm": known.final_norm is not None,
    }


def epsilon(config: Mapping[str, Any]) -> float:
    """Return the number that each layer norm adds to the variance; DistilBERT's is fixed."""
    kind, known = config["model_type"], architecture(config)
    key = known.settings.get("layer_norm_eps", "layer_norm_eps")
    value = 1e-12 if kind == "distilbert" else config.get(key, known.epsilon)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise EngineError(f"{key} in config.json is {value!r}, expected a number from 0 to 1")
    return float(value)


def has_bias(config: Mapping[str, Any], part: str) -> bool:
    """Return whether a kind of matrix, or "norm", has biases. Raises `EngineError`."""
    key = architecture(config).biases.get(part)
    value = True if key is None else config.get(key, False)
    if not isinstance(value, bool):
        raise EngineError(f"{key} in config.json is {value!r}, expected true or false")
    return value


def misfit(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> EngineError:
    """Return the error for a weight whose shape is not the expected one."""
    return EngineError(
        f"{name} is of shape {shape}, and config.json asks for {expected}; they belong to different models"
    )
