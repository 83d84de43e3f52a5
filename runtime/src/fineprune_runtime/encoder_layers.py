"""Read the layers of a model that the engine runs whole, by the names in `architectures`."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fineprune_runtime.anatomy import Kind, heads_of
from fineprune_runtime.architectures import architecture, has_bias, misfit, settings, whole
from fineprune_runtime.disentangled import projections
from fineprune_runtime.errors import EngineError
from fineprune_runtime.rotary import rotations

if TYPE_CHECKING:
    from fineprune_runtime.layers import Layer, Linear, Matrix, Norm

Vector = NDArray[np.float32]
Shapes = dict[str, tuple[int, int]]

_SEPARATE: tuple[Kind, ...] = ("Q", "K", "V")


def matrix_shapes(config: Mapping[str, Any]) -> Shapes:
    """Return the shape (outputs, inputs) of each matrix of a layer, by its name relative to the layer."""
    hidden = whole(config, "hidden_size")
    return _shapes(config, hidden, whole(config, "intermediate_size"))


def _shapes(config: Mapping[str, Any], heads: int, neurons: int) -> Shapes:
    """Return the shapes for a number of outputs of all heads, and of neurons."""
    known, hidden = architecture(config), whole(config, "hidden_size")
    others: dict[Kind, tuple[int, int]] = {
        "QKV": (3 * heads, hidden),
        "O": (hidden, heads),
        "FFN in": (neurons * (1 + known.gated), hidden),
        "FFN out": (hidden, neurons),
    }
    shapes = {f"{name}.weight": others.get(kind, (heads, hidden)) for kind, name in known.matrices.items()}
    projected = (f"{name}.weight" for name in projections(config).values() if name is not None)
    return shapes | dict.fromkeys(projected, (heads, hidden))


def shrunk_shapes(config: Mapping[str, Any], place: str, stored: Callable[[str], tuple[int, ...]]) -> Shapes:
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
    return _shapes(config, widths["O"], widths["FFN out"])


class _Reader(NamedTuple):
    """Reads the parts of layers, and checks their shapes."""

    config: Mapping[str, Any]
    matrix: "Callable[[str], Matrix]"
    vector: Callable[[str], Vector]
    stored: Callable[[str], tuple[int, ...]] | None

    def linear(self, place: str, kind: Kind, shapes: Shapes) -> "Linear":
        """Return a matrix of a layer, with its bias if it has one."""
        part = architecture(self.config).matrices[kind]
        return self.named(place, part, shapes, has_bias(self.config, kind))

    def named(self, place: str, part: str, shapes: Shapes, biased: bool = True) -> "Linear":
        """Return the matrix of a name, relative to its layer."""
        from fineprune_runtime.layers import Linear

        name, expected = f"{place}{part}.weight", shapes[f"{part}.weight"]
        if self.stored is not None and tuple(self.stored(name)) != expected:
            raise misfit(name, tuple(self.stored(name)), expected)
        weight = self.matrix(name)
        if tuple(weight.shape) != expected:
            raise misfit(name, tuple(weight.shape), expected)
        return Linear(weight, self._checked(f"{place}{part}.bias", expected[0]) if biased else None)

    def norm(self, name: str) -> "Norm":
        """Return the norm of a name; one without a bias has zeros."""
        from fineprune_runtime.layers import Norm

        hidden = whole(self.config, "hidden_size")
        weight = self._checked(f"{name}.weight", hidden)
        has = has_bias(self.config, "norm")
        return Norm(weight, self._checked(f"{name}.bias", hidden) if has else np.zeros(hidden, np.float32))

    def _checked(self, name: str, size: int) -> Vector:
        values = np.ascontiguousarray(self.vector(name), dtype=np.float32)
        if values.shape != (size,):
            raise misfit(name, values.shape, (size,))
        return values


def each_layer(
    config: Mapping[str, Any],
    matrix: "Callable[[str], Matrix]",
    vector: Callable[[str], Vector],
    prefix: str,
    stored: Callable[[str], tuple[int, ...]] | None = None,
) -> "Iterator[Layer]":
    """Yield the layers of a model that the engine runs whole, each read when it is asked for.

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
    from fineprune_runtime.layers import Layer

    known, read = architecture(config), _Reader(config, matrix, vector, stored)
    settings(config)
    bias_rows = None if known.bias is None else np.arange(heads_of(config))
    layers = whole(config, "num_hidden_layers")
    rotated, projected = rotations(config, layers), projections(config)
    for index in range(layers):
        place = f"{prefix}{known.layer}.{index}."
        norms = [f"{place}{name}" for name in known.norms]
        if known.final_norm is not None:  # each is before its part: after the one before
            last = index == layers - 1
            following = known.final_norm if last else f"{known.layer}.{index + 1}.{known.norms[0]}"
            norms = [norms[1], f"{prefix}{following}"]
        shapes = matrix_shapes(config) if stored is None else shrunk_shapes(config, place, stored)
        if "QKV" in known.matrices:
            query, key, value = read.linear(place, "QKV", shapes).parts(3)
        else:
            query, key, value = (read.linear(place, kind, shapes) for kind in _SEPARATE)
        ffn_in = read.linear(place, "FFN in", shapes).parts(1 + known.gated)
        own = {"c2p": key, "p2c": query}
        positions = {
            kind: own[kind] if name is None else read.named(place, name, shapes)
            for kind, name in projected.items()
        }
        yield Layer(
            query=query,
            key=key,
            value=value,
            attention_output=read.linear(place, "O", shapes),
            attention_norm=read.norm(norms[0]),
            ffn_in=ffn_in[0],
            ffn_out=read.linear(place, "FFN out", shapes),
            output_norm=read.norm(norms[1]),
            bias_rows=bias_rows,
            ffn_gate=ffn_in[1] if known.gated else None,
            rotary=rotated(index).frequencies,
            window=rotated(index).window,
            position_key=positions.get("c2p"),
            position_query=positions.get("p2c"),
        )
