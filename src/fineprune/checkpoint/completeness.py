"""Check that a model got its weights from its files: none is random, and none of the files' is left over."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from fineprune.errors import FinepruneError

# Random in every checkpoint, and used in training alone.
_ONLY_TRAINED = re.compile(r"(^|\.)masked_spec_embed$")
# Buffers that training changes; all others follow from the config.
_MEASURED = ("running_mean", "running_var")
_PREPARED = (".parametrizations.", ".mask_module.", ".mask_scores")
_HEADS = {"classifier", "pre_classifier", "classification_head", "score", "pooler", "sequence_summary"}
_WRAPPERS = ("_orig_mod.", "module.")  # of torch.compile and of DDP


def check_all(
    model: Any, info: Mapping[str, Any], source: Any, exact: bool = False, cut: bool = False
) -> None:
    """Raise unless every weight of a model was in its files.

    A model without a head whose files have no pooler, as sentence encoders are often saved, loses its pooler.

    Args:
        model: a model of the class that its config.json names.
        info: what `from_pretrained` returned about its weights.
        source: the folder, or the name on the hub.
        exact: the files hold nothing else, because fineprune wrote them.
        cut: the caller changed the config, so that layers may be left over.

    Raises:
        FinepruneError: weights are missing, or certainly of another model.
    """
    _check_heads(model, source)
    _check_surplus(model, info, source, cut)
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    weights |= {name for name, _ in model.named_buffers() if name.endswith(_MEASURED)}
    missing = {key for key in info["missing_keys"] if key in weights and not _ONLY_TRAINED.search(key)}
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise FinepruneError(
            f"{source}: {name}: the checkpoint holds {tuple(stored)}, the model of config.json takes "
            f"{tuple(wanted)}; fetch both again, or for a new head use {type(model).__name__}.from_pretrained"
        )
    optional = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    if missing and optional and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise _missing(source, type(model).__name__, missing, len(weights), info["unexpected_keys"])
    if exact and not cut and (left := sorted(info["unexpected_keys"])):
        raise FinepruneError(
            f"{source}: its files hold {left[0]}, for which a {type(model).__name__} has no place; "
            "config.json and the weights are not of one model: save or fetch it again"
        )


def check_body(model: Any, info: Mapping[str, Any], source: Any, cut: bool = False) -> None:
    """Raise when a weight of the body, other than of its pooler, was not in the model's files.

    The arguments are those of `check_all`; the model may have another head than its files.
    """
    _check_heads(model, source)
    _check_surplus(model, info, source, cut)
    shapes = {key: parameter.shape for key, parameter in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    body = {key for key in shapes if key.startswith(prefix) and not _HEADS & set(key.split("."))}
    if wrong := sorted(mismatched & body):
        raise FinepruneError(f"{source}: the shape of {wrong[0]} in the files does not fit config.json")
    if missing := {key for key in info["missing_keys"] if key in body and len(shapes[key]) > 1}:
        raise _missing(
            source, f"{model.config.model_type} model", missing, len(body), info["unexpected_keys"]
        )


def _check_heads(model: Any, source: Any) -> None:
    """Raise for a negative number of heads: the model is made all the same, and cannot answer."""
    heads = getattr(model.config, "num_attention_heads", None)
    if isinstance(heads, int) and heads < 0:
        raise FinepruneError(
            f"{source}: config.json asks for {heads} attention heads, and there is at least 1; "
            "save or fetch it again"
        )


def _missing(
    source: Any, what: str, missing: Iterable[str], total: int, unexpected: Iterable[str]
) -> FinepruneError:
    names, others = sorted(missing), sorted(unexpected)
    advice = "use a pre-trained model, or fetch this one again"
    if wrapped := next((other for other in others if other.startswith(_WRAPPERS)), None):
        wrapper = wrapped.split(".")[0]
        advice = f"its files have {wrapped}: save model.{wrapper}, not the compiled or distributed wrapper"
    elif others:
        advice = f"its files have others, such as {others[0]}: they are of another model, or were renamed"
    return FinepruneError(
        f"{source}: {len(names)} of the {total} weights of the {what} are not in its files and would be "
        f"random, such as {names[0]}; {advice}"
    )


def _check_surplus(model: Any, info: Mapping[str, Any], source: Any, cut: bool) -> None:
    """Raise for weights in the files that make it certain that the model is not the one that was saved."""
    unexpected = sorted(info["unexpected_keys"])
    if prepared := next((key for key in unexpected if any(part in key for part in _PREPARED)), None):
        if ".parametrizations." in prepared:
            raise FinepruneError(
                f"{source}: was saved while it was being pruned, with masks beside the weights ({prepared}); "
                "call fineprune.finalize(model) before save_pretrained, or save with fineprune.save_compact"
            )
        raise FinepruneError(
            f"{source}: an older program's masks are not folded into its weights ({prepared}); "
            "fineprune compact folds them"
        )
    if not cut and (left := next(_beyond(model, unexpected), None)):
        raise FinepruneError(
            f"{source}: its files hold {left}, a layer more than config.json has; they are not of one model: "
            "fetch both again, or save the model with the layers that it has"
        )


def _beyond(model: Any, names: Iterable[str]) -> Iterator[str]:
    """Yield the names of weights in numbered layers that the model does not have."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    prefix = f"{model.base_model_prefix}."
    for name in names:
        parts = name.split(".")
        for place, part in enumerate(parts):
            if part.isdecimal():
                above = ".".join(parts[:place])
                # Files of a model without a head lack the prefix, or have one more.
                known = (lists.get(key) for key in (above, above.removeprefix(prefix), prefix + above))
                if any(length is not None and int(part) >= length for length in known):
                    yield name
                    break
