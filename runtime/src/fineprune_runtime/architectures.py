"""The BERT-like models that the engine runs whole: their names, their settings, and their layers.

All are post-norm encoders with learned absolute positions (Devlin et al., 2019, arXiv:1810.04805): a layer is
attention, a sum and a norm, two matrices with an activation between them, a sum and a norm. MPNet's attention
has a bias by distance, too. Names are those of transformers, and `anatomy` tells their kinds. Reads no files:
works on a live model too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.anatomy import HEAD_COUNTS, Kind, by_kind, heads_of
from fineprune_runtime.errors import EngineError

if TYPE_CHECKING:
    from fineprune_runtime.layers import Layer, Matrix

Task = Literal["text", "tokens", "questions"]
Vector = NDArray[np.float32]

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
    """The names of a layer's six matrices, relative to it."""
    norms: tuple[str, str]
    """The names of the norms after the attention and after the feed-forward, relative to the layer."""
    pooled: tuple[str, str, str]
    """The head that classifies texts: first matrix, activation, second matrix."""
    settings: Mapping[str, str] = {}
    """The names of settings in config.json that differ from BERT's, by BERT's name."""
    offset: bool = False
    """Positions count from the padding token's id plus 1; padding has that id itself."""
    padding: int = 0
    """The id of the padding token unless config.json gives one."""
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
ARCHITECTURES = {
    "bert": Architecture(
        base="bert",
        layer="encoder.layer",
        matrices=_BERT,
        norms=_BERT_NORMS,
        pooled=("bert.pooler.dense", "tanh", "classifier"),
    ),
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
    return {"head_dim": hidden // heads, "activation": _ACTIVATIONS[activation], "epsilon": epsilon(config)}


def epsilon(config: Mapping[str, Any]) -> float:
    """Return the number that each layer norm adds to the variance; DistilBERT's is fixed."""
    value = 1e-12 if config.get("model_type") == "distilbert" else config.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise EngineError(f"layer_norm_eps in config.json is {value!r}, expected a number from 0 to 1")
    return float(value)


def matrix_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the shape (outputs, inputs) of each matrix of a layer, by its name relative to the layer."""
    names = architecture(config).matrices
    hidden, inner = whole(config, "hidden_size"), whole(config, "intermediate_size")
    others = {"FFN in": (inner, hidden), "FFN out": (hidden, inner)}
    return {f"{name}.weight": others.get(kind, (hidden, hidden)) for kind, name in names.items()}


def shrunk_shapes(
    config: Mapping[str, Any], place: str, stored: Callable[[str], tuple[int, ...]]
) -> dict[str, tuple[int, int]]:
    """Return the shapes of one layer's matrices, as `matrix_shapes`, of a model that was shrunk.

    Args:
        config: the content of config.json, with the sizes before.
        place: in front of the names of the layer's matrices.
        stored: returns the shape that the weight of a name has.

    Raises:
        EngineError: O or FFN out has more inputs than config.json says, or a part of a head.
    """
    known, full = architecture(config), matrix_shapes(config)
    hidden, size = whole(config, "hidden_size"), settings(config)["head_dim"]
    widths: dict[Kind, int] = {}
    readers: tuple[tuple[Kind, int], ...] = (("O", size), ("FFN out", 1))
    for kind, lines in readers:
        name = f"{known.matrices[kind]}.weight"
        shape = tuple(stored(place + name))
        most = full[name][1]
        fits = len(shape) == 2 and shape[0] == hidden and 0 < shape[1] <= most and shape[1] % lines == 0
        if not fits or (known.bias is not None and kind == "O" and shape[1] != most):
            allowed = f"{lines} to {most} inputs" + (f", {lines} a head" if lines > 1 else "")
            raise EngineError(
                f"{place}{name} is of shape {shape}, and config.json allows {hidden} outputs and {allowed}; "
                "fetch the model again"
            )
        widths[kind] = shape[1]
    heads, neurons = widths["O"], widths["FFN out"]
    others: dict[Kind, tuple[int, int]] = {
        "O": (hidden, heads),
        "FFN in": (neurons, hidden),
        "FFN out": (hidden, neurons),
    }
    return {f"{name}.weight": others.get(kind, (heads, hidden)) for kind, name in known.matrices.items()}


def each_layer(
    config: Mapping[str, Any],
    matrix: "Callable[[str], Matrix]",
    vector: Callable[[str], Vector],
    prefix: str,
    stored: Callable[[str], tuple[int, ...]] | None = None,
) -> "Iterator[Layer]":
    """Yield the layers of a BERT-like model, each read when it is asked for.

    Args:
        config: the content of config.json.
        matrix: returns the weight of a name, of shape (outputs, inputs).
        vector: returns the bias, or a norm's weight or bias, of a name, 1-d float32.
        prefix: in front of all names: "bert." in a model with a head, "" in a base model.
        stored: of a model that was shrunk, returns the shape that the weight of a name has; the layers may
            then have fewer heads and neurons than config.json says. None: all have the shapes of config.json.

    Raises:
        EngineError: an architecture or a setting that the engine lacks, or a weight whose shape differs from
            the one in config.json.
    """
    # Imported here, so that a program that needs only the names does not load the engine.
    from fineprune_runtime.layers import Layer, Linear, Norm

    known = architecture(config)
    hidden = whole(config, "hidden_size")
    settings(config)

    def linear(place: str, part: str) -> Linear:
        name, expected = f"{place}{part}.weight", shapes[f"{part}.weight"]
        if stored is not None and tuple(stored(name)) != expected:
            raise misfit(name, tuple(stored(name)), expected)
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

    names, norms = known.matrices, known.norms
    bias_rows = None if known.bias is None else np.arange(heads_of(config))
    for index in range(whole(config, "num_hidden_layers")):
        place = f"{prefix}{known.layer}.{index}."
        shapes = matrix_shapes(config) if stored is None else shrunk_shapes(config, place, stored)
        yield Layer(
            query=linear(place, names["Q"]),
            key=linear(place, names["K"]),
            value=linear(place, names["V"]),
            attention_output=linear(place, names["O"]),
            attention_norm=norm(place, norms[0]),
            ffn_in=linear(place, names["FFN in"]),
            ffn_out=linear(place, names["FFN out"]),
            output_norm=norm(place, norms[1]),
            bias_rows=bias_rows,
        )


def misfit(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> EngineError:
    """Return the error for a weight whose shape is not the expected one."""
    return EngineError(
        f"{name} is of shape {shape}, and config.json asks for {expected}; they belong to different models"
    )
