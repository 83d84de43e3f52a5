"""Replace linear layers by two thin ones each, as PELA does first (Guo et al. 2024, arXiv:2310.10700)."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fineprune._validation import is_number
from fineprune.errors import FinepruneError
from fineprune.pruning.adapters import adapted_layers
from fineprune.pruning.distributed.ranks import is_sharded
from fineprune.pruning.finalizing import masked_modules
from fineprune.pruning.origin import origin_of, record
from fineprune.pruning.targets import (
    check_module,
    find_targets,
    refuse_compiled,
    refuse_meta,
    refuse_not_finite,
    refuse_quantized,
)
from fineprune.pruning.wrapped import transformer_of


class LowRankLinear(nn.Sequential):
    """A linear layer as a product of two thin ones: `0` maps (…, in) to (…, rank), `1` to (…, out).

    The bias is that of `1`. `whole` is the class of the linear layer.
    """

    def __init__(
        self, inputs: int, rank: int, outputs: int, whole: type[nn.Module], bias: bool = True
    ) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias))
        self.whole = whole

    @property
    def weight(self) -> Tensor:
        """The second matrix: models such as T5 read the type of a layer's weight."""
        return self[1].get_parameter("weight")


class Factors(NamedTuple):
    """One linear layer that became two."""

    inputs: int
    outputs: int
    rank: int
    error: float
    """The relative error of the product, in the 2-norm over all elements."""

    @property
    def sizes(self) -> tuple[int, int]:
        """The elements of the matrix, and of the two thin ones."""
        return self.inputs * self.outputs, self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class LowRank:
    """What `factorize` did, by the name of each layer; prints as one line."""

    layers: Mapping[str, Factors]

    @property
    def share(self) -> float:
        """The elements of the thin matrices, as a share of those of the matrices before."""
        before, after = map(sum, zip(*(made.sizes for made in self.layers.values()), strict=True))
        return after / before

    def __str__(self) -> str:
        ranks = sorted({made.rank for made in self.layers.values()})
        errors = [made.error for made in self.layers.values()]
        return (
            f"{len(self.layers)} linear layers are two thin ones each, of rank {', '.join(map(str, ranks))}, "
            f"with {self.share:.1%} of their weights; the products differ by {min(errors):.0%} to "
            f"{max(errors):.0%}"
        )

    __repr__ = __str__


def factorize(
    model: nn.Module,
    compression: float = 3.0,
    targets: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> LowRank:
    """Replace the linear layers in the repeated blocks of a model by two thin ones each, in place.

    A matrix W = U·S·Vᵀ (out, in) becomes √S·Vᵀ (rank, in) and U·√S (out, rank), the best approximation of a
    rank of ⌊in·out / (`compression`·(in + out))⌋ (PELA): the thin matrices have no more than
    1/`compression` of its elements. Training has to follow, with the model before as the teacher. Parameters
    are new, so build an optimizer afterwards.

    Args:
        model: the model. Of a SentenceTransformer or a CrossEncoder, the transformer in it is changed.
        compression: at least 1.
        targets: patterns, as in `PruningConfig`; None: all linear layers in the repeated blocks.
        exclude: patterns of layers to leave whole.

    Raises:
        FinepruneError: a compression that leaves nothing, a layer that is no nn.Linear or Conv1D or is
            shared, or a model that has zeros or thin layers, or is being pruned, accelerated or quantized.
    """
    if not is_number(compression) or compression < 1:
        raise FinepruneError(f"compression={compression!r}: expected a number of at least 1, such as 3")
    layers = _layers(model, targets, exclude)
    model = transformer_of(model)
    ranks = {name: _rank(name, *sides(layer), compression) for name, layer in layers.items()}
    made = {name: _split(layer, ranks[name]) for name, layer in layers.items()}
    for name, (pair, _) in made.items():
        model.set_submodule(name, pair)
    record(model, origin_of(model))  # it is saved with its own shapes from here on
    return LowRank({name: factors for name, (_, factors) in made.items()})


def is_low_rank(model: nn.Module) -> bool:
    """Return whether a layer of a model is two thin ones."""
    return any(isinstance(module, LowRankLinear) for module in model.modules())


def whole_sizes(model: nn.Module) -> dict[str, int]:
    """Return the elements of the whole matrix by the name of the first thin layer, and 0 by the second's."""
    sizes: dict[str, int] = {}
    for name, pair in model.named_modules():
        if isinstance(pair, LowRankLinear):
            first, second = (part.get_parameter("weight") for part in pair)
            sizes |= {f"{name}.0": first.shape[1] * second.shape[0], f"{name}.1": 0}
    return sizes


def thin(layer: nn.Module, rank: int) -> LowRankLinear:
    """Return the two thin layers for a linear one, with its bias, its mode and new matrices on its device."""
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    inputs, outputs = sides(layer)
    with weight.device:
        made = LowRankLinear(inputs, rank, outputs, type(layer), bias is not None).to(weight.dtype)
    if bias is not None:
        made[1].bias = bias
    return made.train(layer.training)


@torch.no_grad()
def multiply_out(model: nn.Module) -> None:
    """Replace the thin layers of a model by linear ones of their products, in place."""
    for name, pair in [(n, m) for n, m in model.named_modules() if isinstance(m, LowRankLinear)]:
        first, second = (entry.get_parameter("weight") for entry in pair)
        product = (second.float() @ first.float()).to(first.dtype)
        is_linear = pair.whole is nn.Linear
        with torch.device("meta"):  # Conv1D takes its outputs first, and its matrix is (in, out)
            whole = pair.whole(*(product.shape[::-1] if is_linear else product.shape))
        whole.register_parameter("weight", nn.Parameter(product if is_linear else product.T.contiguous()))
        whole.register_parameter("bias", pair[1]._parameters.get("bias"))
        model.set_submodule(name, whole.train(pair.training))
    record(model, origin_of(model))


def sides(layer: nn.Module) -> tuple[int, int]:
    """Return the inputs and outputs of an nn.Linear or a Conv1D, whose matrix is (in, out)."""
    rows, columns = layer.get_parameter("weight").shape
    return (columns, rows) if isinstance(layer, nn.Linear) else (rows, columns)


def _layers(
    model: nn.Module, targets: Iterable[str] | None, exclude: Iterable[str] | None
) -> dict[str, nn.Module]:
    """Return the layers to replace, by their names in the transformer, once the model is known to be fit."""
    check_module(model, "factorize")
    refuse_compiled(model)
    refuse_meta(model)
    refuse_quantized(model)
    refuse_not_finite(model)
    for name, _ in adapted_layers(model):
        raise FinepruneError(f"{name}: carries an adapter; merge it (merge_and_unload) before factorize")
    for name, *_ in masked_modules(model):
        raise FinepruneError(f"{name}: is being pruned; factorize first, or finalize the model")
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise FinepruneError("the model is sharded over processes: factorize it before it is sharded")
    model = transformer_of(model)
    origin = origin_of(model)
    if origin is not None and not origin.ordinary:
        raise FinepruneError(
            "the model was shrunk to widths that differ from layer to layer; factorize the model before that"
        )
    if is_low_rank(model):
        raise FinepruneError(
            "the model has thin layers already; load the model before that, and factorize it"
        )
    layers = find_targets(model, targets, exclude)
    utils = sys.modules.get("transformers.pytorch_utils")
    plain = (nn.Linear, utils.Conv1D) if utils else (nn.Linear,)
    places = [id(child) for parent in model.modules() for child in parent._modules.values()]
    for name, layer in layers.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        read_directly = type(parent).__module__.startswith("torch.nn.modules.activation")
        if type(layer) not in plain or read_directly:
            raise FinepruneError(
                f"{name}: is a {type(layer).__name__} in a {type(parent).__name__}; only an nn.Linear or "
                "Conv1D called by itself can be two thin ones; leave it out, with exclude"
            )
        if places.count(id(layer)) > 1:
            raise FinepruneError(f"{name}: is in several places of the model; leave it out with exclude")
        zeros = int((layer.get_parameter("weight") == 0).sum())
        if 10 * zeros > layer.get_parameter("weight").numel():
            raise FinepruneError(
                f"{name}: is pruned, {zeros:,} of its weights are 0, which thin matrices would fill; "
                "factorize the dense model, then prune"
            )
    return layers


def _rank(name: str, inputs: int, outputs: int, compression: float) -> int:
    rank = int(inputs * outputs / (compression * (inputs + outputs)))
    if rank < 1:
        raise FinepruneError(
            f"compression={compression:g}: leaves no rank of {name} ({outputs} x {inputs}); at most "
            f"{inputs * outputs // (inputs + outputs)} is possible, or leave it out with exclude"
        )
    return rank


@torch.no_grad()
def _split(layer: nn.Module, rank: int) -> tuple[LowRankLinear, Factors]:
    """Return the best thin layers of a rank for a linear one."""
    inputs, outputs = sides(layer)
    weight = layer.get_parameter("weight")
    matrix = (weight if isinstance(layer, nn.Linear) else weight.T).double()
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    root = sizes[:rank].sqrt()
    made = thin(layer, rank)
    made[0].get_parameter("weight").copy_(root[:, None] * right[:rank])
    made[1].get_parameter("weight").copy_(left[:, :rank] * root)
    for part in made:
        part.get_parameter("weight").requires_grad_(weight.requires_grad)
    lost = sizes[rank:].square().sum() / sizes.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return made, Factors(inputs, outputs, rank, float(lost.sqrt()))
