"""Make transformers open compact models through plain `from_pretrained`; the one seam to its loading.

config.json asks for a quantizer named "fineprune", registered here (`register_quantizer`). It checks the
files before it creates a weight, unpacks each matrix as it is loaded, and returns an ordinary dense model
that writes the compact form again on `save_pretrained`. Without fineprune imported, transformers skips the
unknown name and stops on the shapes of the packed matrices.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    build_glob_alternation,
    revert_weight_conversion,
)
from transformers.modeling_utils import PreTrainedModel, remove_tied_weights_from_state_dict
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fineprune.checkpoint import packing, shapes
from fineprune.checkpoint.model_files import check_listed
from fineprune.checkpoint.packed_embedding import PackedEmbedding
from fineprune.checkpoint.prepared_models import refuse_saving
from fineprune.errors import FinepruneError
from fineprune.pruning.origin import on_record, origin_of
from fineprune.pruning.targets import find_targets, is_linear, is_pointwise
from fineprune_runtime import codec
from fineprune_runtime.architectures import ARCHITECTURES
from fineprune_runtime.folder import SHAPED_VERSION

METHOD = "fineprune"

_staying_packed = contextvars.ContextVar("staying_packed", default=False)


@contextlib.contextmanager
def staying_packed() -> Iterator[None]:
    """Let `from_pretrained` keep pruned matrices packed (`PackedLinear`, `PackedEmbedding`) in the block."""
    token = _staying_packed.set(True)
    try:
        yield
    finally:
        _staying_packed.reset(token)


@register_quantization_config(METHOD)
class CompactConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The entry `quantization_config` of config.json: the types that a compact model is packed with.

    Version 2 has `shapes`, "file" for a shrunk model, whose tensors are smaller than config.json says.
    """

    shapes: str | None = None

    def __init__(
        self,
        values: packing.Values = "float32",
        embeddings: packing.Embeddings = "keep",
        version: int | None = None,
        shapes: str | None = None,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        expected = codec.VERSION if shapes is None else SHAPED_VERSION
        if version not in (None, expected) or shapes not in (None, "file") or unknown:
            raise FinepruneError(
                f"config.json: format version {version!r} with {sorted(unknown) or 'no'} further settings; "
                f"this fineprune reads version {expected}: upgrade it"
            )
        packing.Packing(values, embeddings)  # raises for an unknown type
        self.quant_method = METHOD
        self.version = expected
        self.values = values
        self.embeddings = embeddings
        if shapes is not None:  # version 1 has no such entry
            self.shapes = shapes


class _Unpack(ConversionOps):  # type: ignore[misc]
    """Unpack a matrix where the checkpoint holds a blob; pass everything else on."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.types: dict[str, torch.dtype] = {}
        self.stay_packed = _staying_packed.get()
        self.matrices: dict[str, tuple[int, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Unpack":
        return self  # transformers copies the converter for each weight; `loaded` is one for all

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str = "", model: Any = None, **_: Any
    ) -> dict[str, Any]:
        (tensor,) = input_dict.values()
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        self.loaded.add(full_layer_name)
        wanted = model.get_parameter_or_buffer(full_layer_name)
        if tensor.ndim == 1 and wanted.ndim != 1:
            dtype = self.types.get(full_layer_name, wanted.dtype)
            # transformers 5.16 may cast bytes to the parameter's type, which keeps them whole numbers.
            blob = tensor.detach().cpu().to(torch.uint8)
            if packing.is_blob(blob):
                if self.stay_packed and _stay_packed(model, full_layer_name, dtype, blob):
                    tensor = blob.view(torch.int8).to(tensor.device)
                else:
                    tensor = self._matrix(blob, full_layer_name, model).to(tensor.device, dtype)
        return {full_layer_name: tensor}

    def _matrix(self, blob: Tensor, name: str, model: Any) -> Tensor:
        """Return the matrix of a blob: unpacked when it was checked, or now where transformers renamed it."""
        header = codec.read_header(blob.numpy())
        if header.values == "mask":  # its ones would be taken for weights
            raise FinepruneError(f"{name}: is a mask without values, which only a delta may hold")
        for known in _variants(name, f"{model.base_model_prefix}."):
            if known in self.matrices and self.matrices[known][0] == header.checksum:
                return self.matrices.pop(known)[1]
        return packing.unpack(blob, model.get_parameter_or_buffer(name).shape)

    @property
    def reverse_op(self) -> ConversionOps:
        return _AsItIs()


class _AsItIs(ConversionOps):  # type: ignore[misc]
    """Pass everything on when saving: `get_state_dict_and_metadata` has packed already."""

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, Any]:
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        return self


@register_quantizer(METHOD)
class CompactQuantizer(HfQuantizer):  # type: ignore[misc]
    """Load and write compact models for transformers."""

    def __init__(self, quantization_config: CompactConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._unpack = _Unpack()
        self._wanted: dict[str, tuple[torch.Size, torch.dtype]] = {}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise FinepruneError(
                "quantization_config: a model is not packed while it loads; use fineprune.save_compact"
            )

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **_: Any
    ) -> None:
        if checkpoint_files is not None and not all(
            str(f).endswith(".safetensors") for f in checkpoint_files
        ):
            raise FinepruneError(f"{checkpoint_files[0]}: a compact model is stored as safetensors only")
        if self.quantization_config.shapes and checkpoint_files is not None:
            shapes.fit(model, checkpoint_files)
        self._wanted = {
            name: (parameter.shape, _own_type(model, name, parameter.dtype))
            for name, parameter in model.named_parameters()
        }
        self._unpack.types = {name: dtype for name, (_shape, dtype) in self._wanted.items()}
        if checkpoint_files is not None:
            prefix = f"{model.base_model_prefix}."
            known_shapes = {}
            for name, (shape, _dtype) in self._wanted.items():
                for known in _variants(name, prefix):
                    known_shapes[known] = tuple(shape)
            # Checking a blob unpacks it: the matrix is kept until it is asked for, so as not to unpack it
            # twice.
            matrices = None if _staying_packed.get() else self._unpack.matrices
            content = packing.verify(checkpoint_files, known_shapes, matrices)
            folder = Path(checkpoint_files[0]).parent
            if (folder / "config.json").is_file():
                check_listed(folder, content)

    def get_weight_conversions(self) -> list[WeightConverter]:
        return [WeightConverter("weight", "weight", operations=[self._unpack])]

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        # True lets transformers put a blob of any length into a packed layer.
        return packing.is_packed(model.get_submodule(param_name.rpartition(".")[0]))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for name, parameter in model.named_parameters():
            shape, dtype = self._wanted.get(name, (parameter.shape, parameter.dtype))
            if parameter.dtype == torch.int8:  # of a packed layer or table
                continue
            if parameter.shape != shape:
                raise FinepruneError(
                    f"{name}: the checkpoint holds {tuple(parameter.shape)}, the model takes {tuple(shape)}"
                )
            parameter.data = parameter.data.to(dtype)  # transformers 5.16 forgets some that were renamed
        converters = [
            entry for entry in model._weight_conversions or [] if isinstance(entry, WeightConverter)
        ]
        if len(converters) <= 1:  # ours alone, so that each linear weight came through it
            for name in _block_layers(model):
                if f"{name}.weight" not in self._unpack.loaded:
                    raise FinepruneError(
                        f"{name}: config.json asks for it, the checkpoint lacks it; they are not of one model"
                    )
        self._unpack.matrices.clear()
        config = self.quantization_config
        write_as(model, packing.Packing(config.values, config.embeddings))
        # An ordinary model from here on: to cast, to train, to prune again.
        model.is_quantized = False
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_is_quantized"):
                module.config._is_quantized = False
        model.register_load_state_dict_pre_hook(_unpack_state)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        config = self.quantization_config
        state, counts = packing.pack_state(model, packing.Packing(config.values, config.embeddings))
        for key in model._keys_to_ignore_on_save or ():
            state.pop(key, None)
        state = remove_tied_weights_from_state_dict(state, model)
        # The manifest uses the names in the file, which transformers may still change.
        named = revert_weight_conversion(model, dict(state))
        pruned = {state[key].data_ptr() for key in counts["pruned"] if key in state}
        counts["pruned"] = sorted(key for key, tensor in named.items() if tensor.data_ptr() in pruned)
        if (origin := origin_of(model)) is not None:
            counts[shapes.KEY] = shapes.to_dict(origin)
        return state, packing.manifest(named, counts)

    def is_serializable(self, **_: Any) -> bool:
        return True

    def remove_quantization_config(self, model: Any) -> None:
        """Let the model, and the parts of it that `write_as` reached, be written as any other."""
        for part in model.modules():
            if isinstance(getattr(part, "hf_quantizer", None), CompactQuantizer):
                super().remove_quantization_config(part)

    @property
    def is_trainable(self) -> bool:
        return True


def _unpack_state(model: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Unpack the argument of `load_state_dict`: Trainer reads its checkpoints without the quantizer."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensor = state.get(name)
        if isinstance(tensor, Tensor) and parameter.ndim != 1 and packing.is_blob(tensor):
            state[name] = packing.unpack(tensor, parameter.shape).to(parameter.dtype)


def _stay_packed(model: Any, weight: str, dtype: torch.dtype, blob: Tensor) -> bool:
    """Replace a linear layer or the table of words by a module that keeps its matrix packed.

    Returns False for a matrix that has to be unpacked.
    """
    name = weight.removesuffix(".weight")
    module = model.get_submodule(name)
    empty = torch.empty(0, dtype=torch.int8, device="meta")
    packed: packing.PackedLinear | PackedEmbedding
    if is_linear(module) and not is_pointwise(module):
        packed = packing.PackedLinear(module, empty)
    elif _is_only_looked_up(model, weight, module) and PackedEmbedding.fits(module, blob):
        packed = PackedEmbedding(module, empty)
    else:
        return False
    packed.dtype = dtype
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, packed)
    return True


def _is_only_looked_up(model: Any, weight: str, module: nn.Module) -> bool:
    """Return whether nothing but lookups reads a table's weight: no tied decoder, and no model code.

    The second is known only of the architectures that the engine runs whole. Only the table of words is large
    enough to be worth it.
    """
    if model.config.model_type not in ARCHITECTURES or model.get_input_embeddings() is not module:
        return False
    if hasattr(model, "lm_predictions"):  # DeBERTa's newer head multiplies by the table
        return False
    ties = model.all_tied_weights_keys
    return weight not in {*ties, *ties.values()}


def _own_type(model: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type to load a parameter as: T5, for one, keeps `wo` in float32 where float16 is asked."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return dtype
    pattern, by_group, _ = build_glob_alternation(list(plan))
    match = pattern.search(name)
    return dtype if match is None else plan[by_group[match.lastgroup]]


def _variants(name: str, prefix: str) -> tuple[str, ...]:
    """Return the names that a checkpoint of a class with or without a head may use for the same weight."""
    return (name, name.removeprefix(prefix), prefix + name)


def _block_layers(model: nn.Module) -> list[str]:
    try:
        return list(find_targets(model))
    except FinepruneError:  # no linear layer remains, as with packed layers
        return []


def is_ours(conversion: Any) -> bool:
    """Return whether a weight conversion is the one that unpacks."""
    return any(isinstance(entry, _Unpack) for entry in getattr(conversion, "operations", ()))


def written_by(model: nn.Module, kinds: packing.Packing) -> CompactQuantizer:
    """Return the quantizer with which `save_pretrained` writes a model, in its own shapes if it has some."""
    own = "file" if shapes.has_own(model) else None
    return CompactQuantizer(CompactConfig(kinds.values, kinds.embeddings, shapes=own))


def write_as(model: Any, kinds: packing.Packing) -> None:
    """Let `save_pretrained` of a model, and of its parts that share its config, write the compact form."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.config is model.config:
            part.hf_quantizer = written_by(part, kinds)
    model.config.quantization_config = model.hf_quantizer.quantization_config


def _attach(model: nn.Module) -> None:
    """Let `save_pretrained` write the shapes of a shrunk model, and no longer where it became ordinary."""
    if not isinstance(model, PreTrainedModel):
        return
    current: Any = getattr(model, "hf_quantizer", None)
    is_compact = isinstance(current, CompactQuantizer)
    if shapes.has_own(model) or any(map(is_ours, getattr(model, "_weight_conversions", None) or ())):
        config = current.quantization_config if is_compact else CompactConfig()
        write_as(model, packing.Packing(config.values, config.embeddings))
        model.register_load_state_dict_pre_hook(_unpack_state)
    elif is_compact:
        current.remove_quantization_config(model)


on_record(_attach)
refuse_saving()
