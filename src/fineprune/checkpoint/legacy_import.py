"""Load checkpoints of older programs, their masks folded in; key names tell which program wrote them.

The original movement-pruning scripts (transformers' research_projects/movement-pruning, 2020) keep
`mask_scores` of a weight's shape beside it. nn_pruning, before it compiles a model, keeps scores under
`mask_module.context_modules`: a grid with one score for each block of the weight, or a vector for the rows
(0) and one for the columns (1), whose outer product is the grid; a missing vector is all ones. The masks are
computed as those programs do, to the count, and not by Eq. 1: their authors measured the model with them.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fineprune._messages import one_line
from fineprune.checkpoint.model_files import check_files, read_json
from fineprune.errors import FinepruneError
from fineprune.pruning.methods import hard_concrete
from fineprune.pruning.selection import fill_masks, find_threshold
from fineprune.pruning.targets import find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARE = "0 < threshold <= 1, the share that stays"
_THRESHOLDS = dict.fromkeys(("topK", "global_topk", "magnitude"), _SHARE) | {
    "sigmoied_threshold": "0 <= threshold < 1, tau",
    "threshold": "a finite number, the score to exceed",
    "l0": "None",
}
_SCORES = re.compile(r"(.+?)(?:\.mask_module\.context_modules\.([01]))?\.mask_scores")
_FLOOR = 0.005  # the share of a matrix that a threshold keeps at least, whatever the scores
_FILES = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_NO_FOLD = {".ampere_module.": "an ampere pattern", ".accumulator": "a norm on its way to no-norm"}
_UNUSED = re.compile(r"(^|\.)(position_ids$|pooler\.)")  # an old buffer; a pooler that its model never uses
# Settings of config.json that mean nothing after the fold, and those that follow from the model's class.
_LEGACY = {"pruning_method", "mask_init", "mask_scale", "pruned_heads", "auto_map"}
_DERIVED = {"architectures", "model_type", "dtype", "torch_dtype"}


class _Checkpoint(NamedTuple):
    """The files of a folder, read and checked."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    """The weights, without the scores."""
    scores: dict[str, dict[str, Tensor]]
    """By layer and side: 0, 1, or "" in the original scripts' layout."""
    is_patched: bool
    """Whether nn_pruning wrote it."""
    settings: dict[str, Any]
    """nn_pruning's sparse_args.json; empty without it."""
    method: str | None
    """The method that the files name."""


@torch.no_grad()
def import_checkpoint(
    folder: str | Path, method: str | None = None, threshold: float | None = None
) -> "PreTrainedModel":
    """Load a checkpoint with mask scores as an ordinary float32 model, the masks folded in.

    `topK` and `magnitude` keep int(threshold * n) of a matrix's n scores or |weights|, of equal ones the
    lower index, which the originals leave to their sort; thresholds keep about 0.5 % at least; `l0`
    multiplies by the gate of test time. `magnitude` without scores prunes the layers that `prepare` would. As
    in nn_pruning, a row that is masked completely loses its bias, unless sparse_args.json says otherwise;
    without that file a change of activation goes unnoticed.

    Args:
        folder: The checkpoint.
        method: `topK` (movement), `sigmoied_threshold` (soft movement), `threshold`, `l0`, `magnitude`, or
            `global_topk` for a `threshold` run with `--global_topk`; None: as the files say
            (`pruning_method` in config.json, nn_pruning's sparse_args.json).
        threshold: The run's `--final_threshold`; not needed for `l0`, nor where sparse_args.json has it.

    Raises:
        FinepruneError: for files that cannot be read, a method or threshold that is missing or not allowed,
            scores that are NaN or do not fit their weight, missing or surplus weights, and changes that
            cannot be folded in: ampere patterns, changed norms and activations, removed heads.
    """
    check_files(Path(folder).expanduser())
    checkpoint = _read(Path(folder).expanduser(), method)
    settings, scores, state = checkpoint.settings, checkpoint.scores, checkpoint.state
    if threshold is None:
        threshold = settings.get("final_threshold")
    method, threshold = _check(method, checkpoint, threshold)
    model = _build(checkpoint.config)
    _load(model, state)
    targets = list(find_targets(model))
    if scores and not checkpoint.is_patched and (lacking := [name for name in targets if name not in scores]):
        raise FinepruneError(f"{lacking[0]} has no mask_scores as others have; copy the files again")
    grids = {layer: _grid(layer, sides, state[f"{layer}.weight"].shape) for layer, sides in scores.items()}
    if method == "global_topk":
        method, threshold = "threshold", _exceeded([*grids.values()], threshold)
    # Without the file as by default; a file without the setting is from before there was one.
    masks_bias = checkpoint.is_patched and bool(settings.get("bias_mask", not settings))
    floor = settings.get("linear_min_parameters", _FLOOR)
    for layer in scores or targets:
        score = model.get_parameter(f"{layer}.weight").abs() if method == "magnitude" else grids[layer]
        _fold(model, layer, _gate(method, threshold, score, floor), masks_bias)
    return model


def _read(folder: Path, method: str | None) -> _Checkpoint:
    """Read a checkpoint; `method` is the user's, None where not given."""
    config = _read_json(folder / "config.json")
    state = _read_state(folder)
    scores = _take_scores(config, state)
    is_patched = any("" not in sides for sides in scores.values())
    vectors = any(side.dim() == 1 for sides in scores.values() for side in sides.values())
    if is_patched and vectors and any(folder.glob("*.safetensors")):
        why = "safetensors drop mask_scores by row or column that layers share"
        raise FinepruneError(f"{folder}: {why}; save the model as pytorch_model.bin")
    sparse_args = folder / "sparse_args.json"
    settings = _read_json(sparse_args) if is_patched and sparse_args.exists() else {}
    named = _method_of(settings) if settings else str(config.get("pruning_method") or "")
    if not scores and "magnitude" not in (method, named):
        what = (
            "an ordinary checkpoint, no key ends in mask_scores; `fineprune compact` takes it without "
            "--method and --threshold"
        )
        raise FinepruneError(f"{folder}: {what} (a masked_bert once its config.json says bert and BertFor…)")
    return _Checkpoint(config, state, scores, is_patched, settings, named)


def _fold(model: "PreTrainedModel", layer: str, gate: Tensor, masks_bias: bool) -> None:
    """Multiply a layer's weight by the gate of each of its blocks, and its bias by that of its rows."""
    weight = model.get_parameter(f"{layer}.weight")
    bias = getattr(model.get_submodule(layer), "bias", None)
    for axis, size in enumerate(weight.shape):
        gate = gate.repeat_interleave(size // gate.shape[axis], dim=axis)
    weight.mul_(gate).masked_fill_(gate == 0, 0)  # the second for zeros without a sign
    if bias is not None and masks_bias:
        bias.masked_fill_((gate == 0).all(1), 0)


def is_foreign(folder: Path) -> bool:
    """Return whether an older program wrote the folder, and its masks are still to be folded in.

    A compiled model is an ordinary one, whatever settings files remain beside it.
    """
    if not (folder / "config.json").is_file():
        return False
    config = _read_json(folder / "config.json")
    method = config.get("pruning_method")
    if str(config.get("model_type")).startswith("masked_") or method == "magnitude":
        return True
    if method is None and not (folder / "sparse_args.json").is_file():
        return False
    marks = ("mask_scores", *_NO_FOLD)
    return any(mark in key for key in _read_state(folder) for mark in marks)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise FinepruneError(f"{path}: no JSON object, name a saved model: {one_line(error)}") from error


def _read_state(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of the weight files by name, layer norms under their present names."""
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in next(filter(None, (sorted(folder.glob(pattern)) for pattern in _FILES)), []):
        try:
            # The only pickles that we read: these checkpoints are older than safetensors and exist in no
            # other form. The restricted unpickler creates tensors and containers and calls nothing else.
            safe = path.suffix == ".safetensors"
            part = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
            if not all(isinstance(value, Tensor) for value in part.values()):
                raise TypeError
        except Exception as error:  # by file and version; torch's own text advises to run the file's code
            raise FinepruneError(f"{path}: broken or no dict of tensors; copy or save it again") from error
        for key, value in part.items():
            key = str(key).replace("LayerNorm.gamma", "LayerNorm.weight")
            state[key.replace("LayerNorm.beta", "LayerNorm.bias")] = value
    if not state:
        raise FinepruneError(f"{folder}: no weights; allowed: model.safetensors, pytorch_model.bin, shards")
    return state


def _take_scores(config: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Move the scores out of `state` and return them by layer and side."""
    for name, plain in (("pruned_heads", {}), ("layer_norm_type", "layer_norm")):
        if config.get(name, plain) not in (plain, None):
            raise FinepruneError(f"{name} {config[name]!r:.60} of config.json has no fold; allowed: {plain}")
    scores: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in list(state):
        if what := next((_NO_FOLD[part] for part in _NO_FOLD if part in key), None):
            raise FinepruneError(f"{key} is {what}, which has no fold; compile the model with nn_pruning")
        if match := _SCORES.fullmatch(key):
            if getattr(state.get(f"{match[1]}.weight"), "ndim", 0) != 2:
                raise FinepruneError(f"{key} has no matrix {match[1]}.weight with it; copy the files again")
            scores[match[1]][match[2] or ""] = state.pop(key).float()
    return dict(scores)


def _method_of(settings: Mapping[str, Any]) -> str | None:
    """Return the method in nn_pruning's settings; raise for settings that change more than masks."""
    for name in ("gelu_patch", "layer_norm_patch", "rewind_model_name_or_path"):
        if settings.get(name):
            raise FinepruneError(f"{name} {settings[name]!r} of sparse_args.json has no fold; compile it")
    methods = {str(settings.get(f"{part}_pruning_method")).split(":")[0] for part in ("attention", "dense")}
    methods -= {"disabled", "None"}
    if len(methods) > 1:
        raise FinepruneError(f"sparse_args.json has the methods {sorted(methods)}; allowed: one; compile it")
    floor = settings.get("linear_min_parameters", _FLOOR)
    if not isinstance(floor, (int, float)) or not 0 <= floor <= 1:
        raise FinepruneError(f"linear_min_parameters of sparse_args.json is {floor!r}; allowed: 0 to 1")
    return methods.pop() if methods else None


def _check(method: str | None, checkpoint: _Checkpoint, value: Any) -> tuple[str, float]:
    """Return the method and its threshold; `method` is the user's, and must agree with the files'."""
    named = checkpoint.method
    # In the scripts `threshold` has two uses: a score to exceed, and --global_topk's share that stays.
    chosen = method or (named if checkpoint.is_patched or named != "threshold" else "") or None
    if chosen not in _THRESHOLDS:
        raise FinepruneError(f"method is {chosen!r}; pass method=, one of {', '.join(_THRESHOLDS)}")
    if named and named != ("threshold" if chosen == "global_topk" else chosen):
        raise FinepruneError(f"method is {chosen!r}, but the files say {named!r}; leave method out")
    if chosen == "l0":  # the scripts' command line asked for a threshold and ignored it
        return chosen, 0.0
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if fits and chosen != "threshold":
        fits = 0 < value <= 1 if _THRESHOLDS[chosen] is _SHARE else 0 <= value < 1
    if not fits:
        raise FinepruneError(f"threshold is {value!r}; pass threshold=, for {chosen} {_THRESHOLDS[chosen]}")
    return chosen, float(value)


def _build(config: Mapping[str, Any]) -> "PreTrainedModel":
    """Create an untrained model of transformers' own class; code in a folder is never read."""
    import transformers

    names = config.get("architectures")
    name = str(names[0] if isinstance(names, list) and names else names).removeprefix("Masked")
    try:
        architecture: Any = getattr(transformers, name, None)
        if not issubclass(architecture, transformers.PreTrainedModel):
            raise TypeError("no model class of transformers, such as BertForSequenceClassification")
        settings = {key: value for key, value in config.items() if key not in _LEGACY | _DERIVED}
        return architecture(architecture.config_class.from_dict(settings)).eval()
    except Exception as error:  # by what is wrong in the file
        raise FinepruneError(
            f"config.json makes no model, architecture {name!r}: {one_line(error)}"
        ) from error


def _load(model: "PreTrainedModel", state: dict[str, Tensor]) -> None:
    """Fill the model from `state`; raise unless it has exactly the model's tensors, in their shapes."""
    expected = model.state_dict(keep_vars=True)
    for key in [key for key in state if key not in expected and _UNUSED.search(key)]:
        del state[key]
    saved = {id(expected[key]): state[key] for key in state if key in expected}
    tied = {key: saved[id(entry)] for key, entry in expected.items() if id(entry) in saved}  # saved once
    try:
        model.load_state_dict(tied | state)
    except RuntimeError as error:
        raise FinepruneError(f"weights must fit config.json, copy both again: {one_line(error)}") from error


def _grid(layer: str, sides: dict[str, Tensor], shape: Sequence[int]) -> Tensor:
    """Return the scores of a weight (rows, columns): (rows / block rows, columns / block columns)."""
    sizes = [tuple(side.shape) for side in sides.values()]
    if "" not in sides and all(len(size) == 1 for size in sizes):
        for axis, side in enumerate("01"):
            if side not in sides:  # blocks are square then: the next layer has this side of the same scores
                sides[side] = torch.ones(shape[axis] * sizes[0][0] // shape[1 - axis])
        grid = torch.outer(sides["0"], sides["1"])
    else:
        grid = next(iter(sides.values())) if len(sides) == 1 else torch.empty(0)
    fits = grid.dim() == 2 and all(n and size % n == 0 for size, n in zip(shape, grid.shape, strict=True))
    if not fits or ("" in sides and grid.shape != shape):
        allowed = "its shape, in nn_pruning a grid that divides it or vectors; copy the files again"
        raise FinepruneError(f"mask_scores of {layer}: {sizes} for a weight {[*shape]}; allowed: {allowed}")
    if bool(grid.isnan().any()):
        raise FinepruneError(f"mask_scores of {layer} are NaN, the training diverged; take an earlier one")
    return grid


def _gate(method: str, threshold: float, scores: Tensor, floor: float) -> Tensor:
    """Return the factor of the weights of each score: bool, for l0 a number in [0, 1]."""
    if method == "l0":
        return hard_concrete.expected(scores)
    if _THRESHOLDS[method] is _SHARE:
        mask = torch.zeros(scores.shape, dtype=torch.bool)
        if keep := int(threshold * scores.numel()):
            fill_masks([mask], [scores], find_threshold([scores], keep))
        return mask
    mask = (scores.sigmoid() if method == "sigmoied_threshold" else scores) > threshold
    least = int(floor * scores.numel()) + 1 if floor else 0
    return mask if int(mask.sum()) >= least else scores > _exceeded([scores], floor)


def _exceeded(scores: Sequence[Tensor], share: float) -> float:
    """Return the score that int(share n) + 1 of all n exceed, where none are equal."""
    total = sum(score.numel() for score in scores)
    return find_threshold(scores, min(int(share * total) + 2, total)).value
