"""What the weights of BERT-like models are called, and the layers that are made of them.

All of them are post-norm encoders with learned absolute positions (Devlin et al., 2019,
arXiv:1810.04805): each layer is attention, a sum and a norm, two matrices with an activation between,
a sum and a norm. Names are those of transformers. Nothing here reads files: a live model will do.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.errors import EngineError

if TYPE_CHECKING:
    from fineprune_runtime.layers import Layer, Matrix

Task = Literal["text", "tokens", "questions"]
Vector = NDArray[np.float32]

# The end of the class that config.json names, and what it is for.
TASKS: dict[str, Task] = {
    "ForSequenceClassification": "text",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "questions",
}
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


class Names(NamedTuple):
    """Of the parts of a layer, relative to it."""

    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    output_norm: str


class Architecture(NamedTuple):
    """One `model_type` of config.json."""

    base: str
    """What the base model is called in a model with a head."""
    layer: str
    """What a layer is called in the base model."""
    names: Names
    pooled: tuple[str, str, str]
    """The head that classifies texts: first matrix, activation, second matrix."""
    settings: Mapping[str, str] = {}
    """What config.json calls a setting where it is not what BERT calls it."""
    offset: bool = False
    """Positions count from the padding token's id plus 1, and padding has that id itself."""
    padding: int = 0
    """The id of the padding token where config.json does not say."""
    types: bool = True
    """Whether there is a table of token types."""


_BERT = Names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT = Names(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    output_norm="output_layer_norm",
)
_ROBERTA = Architecture(
    base="roberta",
    layer="encoder.layer",
    names=_BERT,
    pooled=("classifier.dense", "tanh", "classifier.out_proj"),
    offset=True,
    padding=1,
)
ARCHITECTURES = {
    "bert": Architecture(
        base="bert",
        layer="encoder.layer",
        names=_BERT,
        pooled=("bert.pooler.dense", "tanh", "classifier"),
    ),
    "distilbert": Architecture(
        base="distilbert",
        layer="transformer.layer",
        names=_DISTILBERT,
        pooled=("pre_classifier", "relu", "classifier"),
        settings={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        types=False,
    ),
    "electra": Architecture(
        base="electra",
        layer="encoder.layer",
        names=_BERT,
        pooled=("classifier.dense", "gelu", "classifier.out_proj"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json. Raises `EngineError` for one that cannot run here whole."""
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
    """What the model of a config.json answers. Raises `EngineError` for another kind of head."""
    known = config.get("architectures")
    name = known[0] if isinstance(known, list) and known else None
    for ending, found in TASKS.items():
        if isinstance(name, str) and name.endswith(ending):
            return found
    raise EngineError(
        f"architectures in config.json is {known!r}; it takes a model with the head of a task, a class that "
        f"ends in {', '.join(TASKS)}"
    )


def whole(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above 0 of a config.json, by BERT's name for it. Raises `EngineError`."""
    key = architecture(config).settings.get(name, name)
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EngineError(f"{key} in config.json is {value!r}, expected a whole number, 1 or more")
    return value


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`head_dim`, `activation` and `epsilon` of an `Encoder`. Raises `EngineError`."""
    known = architecture(config)
    key = known.settings.get("hidden_act", "hidden_act")
    activation = config.get(key, "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise EngineError(
            f"{key} is {activation!r}; the engine has {', '.join(_ACTIVATIONS)}: run this model with torch"
        )
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if hidden % heads:
        raise EngineError(f"config.json: {heads} heads cannot share a hidden size of {hidden}")
    return {"head_dim": hidden // heads, "activation": _ACTIVATIONS[activation], "epsilon": epsilon(config)}


def epsilon(config: Mapping[str, Any]) -> float:
    """What each layer norm adds to the variance. DistilBERT's is no setting."""
    value = 1e-12 if config.get("model_type") == "distilbert" else config.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise EngineError(f"layer_norm_eps in config.json is {value!r}, expected a number from 0 to 1")
    return float(value)


def matrix_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The shape (outputs, inputs) of each matrix of a layer, by its name relative to the layer."""
    names = architecture(config).names
    hidden, inner = whole(config, "hidden_size"), whole(config, "intermediate_size")
    square = (names.query, names.key, names.value, names.attention_output)
    shapes = {f"{name}.weight": (hidden, hidden) for name in square}
    return shapes | {f"{names.ffn_in}.weight": (inner, hidden), f"{names.ffn_out}.weight": (hidden, inner)}


def each_layer(
    config: Mapping[str, Any],
    matrix: "Callable[[str], Matrix]",
    vector: Callable[[str], Vector],
    prefix: str,
) -> "Iterator[Layer]":
    """The layers of a BERT-like model one by one, each made when it is asked for.

    `config` is what config.json holds. `matrix(name)` gives a weight of shape (outputs, inputs),
    `vector(name)` a bias, or a norm's weight or bias, 1-d float32; names begin with `prefix`: "bert." in a
    model with a head, "" in a base model. Raises `EngineError` for an architecture or a setting
    that the engine does not have, and for a weight of another shape than config.json says.
    """
    # Here, so that who wants the names alone, at the start of a program, does not load the engine.
    from fineprune_runtime.layers import Layer, Linear, Norm

    known = architecture(config)
    hidden = whole(config, "hidden_size")
    settings(config)
    shapes = matrix_shapes(config)

    def linear(place: str, part: str) -> Linear:
        name, expected = f"{place}{part}.weight", shapes[f"{part}.weight"]
        weight = matrix(name)
        if tuple(weight.shape) != expected:
            raise misfit(name, tuple(weight.shape), expected)
        return Linear(weight, checked(f"{place}{part}.bias", expected[0]))

    def norm(place: str, part: str) -> Norm:
        return Norm(checked(f"{place}{part}.weight", hidden), checked(f"{place}{part}.bias", hidden))

    def checked(name: str, size: int) -> Vector:
        values = np.ascontiguousarray(vector(name), dtype=np.float32)
        if values.shape != (size,):
            raise misfit(name, values.shape, (size,))
        return values

    for index in range(whole(config, "num_hidden_layers")):
        place = f"{prefix}{known.layer}.{index}."
        yield Layer(
            query=linear(place, known.names.query),
            key=linear(place, known.names.key),
            value=linear(place, known.names.value),
            attention_output=linear(place, known.names.attention_output),
            attention_norm=norm(place, known.names.attention_norm),
            ffn_in=linear(place, known.names.ffn_in),
            ffn_out=linear(place, known.names.ffn_out),
            output_norm=norm(place, known.names.output_norm),
        )


def misfit(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> EngineError:
    """What to raise where a weight's shape is not the expected one."""
    return EngineError(
        f"{name} is of shape {shape}, and config.json asks for {expected}; they are not of one model"
    )
