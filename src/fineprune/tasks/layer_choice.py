"""Keep some layers of a pre-trained model: the first ones, or those of a list."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from fineprune.errors import FinepruneError

_AGREE = 1e-4  # of the largest value, in float32


def keep_first(config: Any, layers: int, name: str) -> None:
    """Edit the configuration of a model that is loaded next, so that it has its first layers only.

    Raises:
        FinepruneError: it has fewer layers, or does not say how many.
    """
    total = _total(config, layers, name)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= total:
        raise FinepruneError(f"{name}: layers is {layers!r}; the model has {total}, allowed: 1 to {total}")
    _set_layers(config, range(layers))


def check_choice(config: Any, layers: Sequence[int], name: str) -> None:
    """Raise `FinepruneError` unless a model has the layers of a list, whose numbers rise from 0 on."""
    total = _total(config, list(layers), name)
    if not layers or list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < total:
        raise FinepruneError(
            f"{name}: layers is {list(layers)}; the model has {total}, so give rising numbers from 0 to "
            f"{total - 1}"
        )


def keep_chosen(model: Any, layers: Sequence[int], name: str) -> Any:
    """Return an ordinary model of the same class with the layers of a list, in that order.

    Args:
        model: the whole model, which is not changed.
        layers: the numbers of the layers, which `check_choice` has checked.
        name: of the model, for messages.

    Raises:
        FinepruneError: a layer cannot take the place of another: T5's first one has the bias of positions,
            and SmolLM3's configuration says which ones have none.
    """
    import torch

    from fineprune.pruning.probe import difference, outputs, probe_inputs

    config = copy.deepcopy(model.config)
    total = config.num_hidden_layers
    _set_layers(config, layers)
    smaller = type(model)(config)
    now = {place: len(module) for place, module in smaller.named_modules() if hasattr(module, "__len__")}
    lists = [  # of an encoder and its decoder, those that the configuration's number stands for
        place
        for place, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and (len(module), now.get(place)) == (total, len(layers))
    ]
    weights = {}
    for key, tensor in model.state_dict().items():
        renamed = _renamed(key, lists, layers)
        if renamed is not None:
            weights[renamed] = tensor
    wanted = {key: tuple(tensor.shape) for key, tensor in smaller.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if not lists or wanted != found:
        odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise FinepruneError(
            f"{name}: layers is {list(layers)}, and its layers cannot take each other's places"
            + (f", since {odd[0]} is not the same in all" if odd else "")
            + f"; keep the first ones: layers: {len(layers)}"
        )
    smaller.load_state_dict(weights, assign=True)
    smaller.tie_weights()
    inputs = probe_inputs(model)
    with _skipping(model, lists, layers):
        apart = difference(outputs(model, inputs), outputs(smaller, inputs))
    if not apart <= _AGREE:
        raise FinepruneError(
            f"{name}: layers is {list(layers)}, and a model of these layers answers otherwise than the whole "
            f"one does without the others (by {apart:.1e} of the largest value): layers are told apart by "
            f"their numbers; keep the first ones: layers: {len(layers)}"
        )
    return smaller.train(model.training)


@contextlib.contextmanager
def _skipping(model: Any, lists: Sequence[str], layers: Sequence[int]) -> Iterator[None]:
    """Let the layers that are not in the list return what they were given, while the block runs."""

    def skip(module: Any, args: Any, given: Any, output: Any) -> Any:
        hidden = args[0] if args else given["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hooks = [
        block.register_forward_hook(skip, with_kwargs=True)
        for place in lists
        for index, block in enumerate(model.get_submodule(place))
        if index not in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _total(config: Any, layers: Any, name: str) -> int:
    total = getattr(config, "num_hidden_layers", None)  # through config.attribute_map: n_layers, n_layer
    if not isinstance(total, int):
        raise FinepruneError(
            f"{name}: cannot keep {layers} layers of a {config.model_type} model; leave `layers` out"
        )
    return total


def _set_layers(config: Any, layers: Sequence[int]) -> None:
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None) is not None:  # ModernBERT and others describe each layer
        config.layer_types = [config.layer_types[layer] for layer in layers]


def _renamed(key: str, lists: Sequence[str], layers: Sequence[int]) -> str | None:
    """Return the name of a weight among the layers that stay; None for one of another layer."""
    for place in lists:
        if key.startswith(f"{place}."):
            number, _, rest = key.removeprefix(f"{place}.").partition(".")
            return f"{place}.{layers.index(int(number))}.{rest}" if int(number) in layers else None
    return key
