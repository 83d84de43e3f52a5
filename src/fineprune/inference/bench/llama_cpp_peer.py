"""Run a model's encoder in llama.cpp, with its head in torch: an optional peer of `fineprune bench`.

The weights go into a GGUF file as llama.cpp's own converter puts them there. The converter itself is in no
package, and opens a folder with a tokenizer, which the measurement does not have.
"""

import logging
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fineprune._files import make_folder, staged_file
from fineprune.errors import FinepruneError
from fineprune.inference.bench.other_encoders import with_encoder
from fineprune.pruning.layout import layout_of

KINDS = ("bert", "camembert", "roberta", "xlm-roberta")
"""Each `model_type` that is llama.cpp's architecture "bert"."""

GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")

TOKENS, TEXTS = 512, 64
"""The most in one call. llama.cpp multiplies each token with those of all texts there: more is a waste."""

OUTSIDE = {
    "token_embd": "word_embeddings",
    "token_types": "token_type_embeddings",
    "position_embd": "position_embeddings",
    "token_embd_norm": "LayerNorm",
}
"""llama.cpp's names of the modules of the embeddings."""

INSIDE = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
"""llama.cpp's names of the modules of a layer."""


def encoder_in_llama_cpp(
    model: Any, weights: Literal["F32", "Q8_0"], shape: tuple[int, int], threads: int, folder: Path
) -> nn.Module:
    """Return a copy of a model whose encoder runs in llama.cpp; it shares the head's weights.

    Args:
        model: The model, in float32 on the CPU.
        weights: The type of the encoder's matrices; all else is float32.
        shape: Texts and the tokens of the longest, for which memory is reserved.
        threads: Threads of llama.cpp.
        folder: Where the converted weights are written.

    Raises:
        FinepruneError: llama.cpp has no such encoder, or parts of it were removed.
    """
    base = model.base_model
    check(model)
    file = folder / f"{weights}.gguf"
    make_folder(folder)
    with staged_file(file) as beside:
        _write(base, weights, beside)
    return with_encoder(model, _Encoded(file, shape, threads, getattr(base, "pooler", None)))


def check(model: Any) -> None:
    """Raise `FinepruneError` for a model that llama.cpp does not run, or would run wrongly."""
    config = model.config
    if config.model_type not in KINDS:
        raise FinepruneError(f"{config.model_type}: no encoder of llama.cpp, which has {', '.join(KINDS)}")
    if config.hidden_act not in GELU:
        raise FinepruneError(f"{config.hidden_act}: llama.cpp has no activation but gelu for this encoder")
    blocks, layers = layout_of(model), config.num_hidden_layers
    heads, neurons = config.num_attention_heads, config.intermediate_size
    if [half.sizes.heads for block in blocks for half in block.attentions] != [heads] * layers:
        raise FinepruneError(f"heads were removed, and llama.cpp takes {heads} in every layer")
    if [half.neurons for block in blocks for half in block.feed_forwards] != [neurons] * layers:
        raise FinepruneError(f"neurons were removed, and llama.cpp takes {neurons} in every layer")


def _write(base: Any, weights: str, file: Path) -> None:
    """Write an encoder as a GGUF file."""
    import gguf

    config, embeddings = base.config, base.embeddings
    # RoBERTa's positions begin behind that of padding, those of llama.cpp at 0.
    padding = embeddings.position_embeddings.padding_idx
    first = 0 if padding is None else padding + 1
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_context_length(embeddings.position_embeddings.num_embeddings - first)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.NONE)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_type_count(config.type_vocab_size)

    def add(name: str, tensor: Tensor, kind: str = "F32") -> None:
        kinds = gguf.GGMLQuantizationType
        array = np.ascontiguousarray(tensor.detach().numpy(), np.float32)
        writer.add_tensor(name, gguf.quants.quantize(array, kinds[kind]), raw_dtype=kinds[kind])

    for name, path in OUTSIDE.items():
        for part, tensor in embeddings.get_submodule(path).named_parameters():
            add(f"{name}.{part}", tensor[first:] if name == "position_embd" else tensor)
    for number, layer in enumerate(base.encoder.layer):
        for name, path in INSIDE.items():
            module = layer.get_submodule(path)
            add(f"blk.{number}.{name}.weight", module.weight, weights if module.weight.dim() == 2 else "F32")
            add(f"blk.{number}.{name}.bias", module.bias)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


class _Encoded(nn.Module):
    """An encoder that hands token ids to llama.cpp and returns its states as transformers' encoders do."""

    def __init__(self, file: Path, shape: tuple[int, int], threads: int, pooler: nn.Module | None) -> None:
        import llama_cpp

        super().__init__()
        # Its callback writes what is at least as urgent as this logger's level.
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL + 1)
        self._library, self._pooler = llama_cpp, pooler
        self._texts = max(1, min(shape[0], TEXTS, TOKENS // shape[1]))
        self._tokens = self._texts * shape[1]
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
        if not model:
            raise FinepruneError("llama.cpp cannot load the encoder")
        weakref.finalize(self, llama_cpp.llama_model_free, model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self._tokens
        settings.n_seq_max = self._texts
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings, settings.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_NONE
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise FinepruneError("llama.cpp cannot make a context for the encoder")
        weakref.finalize(self, llama_cpp.llama_free, self._context)  # runs before the older one
        self._batch = llama_cpp.llama_batch_init(self._tokens, 0, 1)
        weakref.finalize(self, llama_cpp.llama_batch_free, self._batch)
        self._width = llama_cpp.llama_model_n_embd(model)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Return the last hidden states, and the pooled one where there is a pooler.

        Raises:
            FinepruneError: The padding does not follow the tokens, token types are not all 0, or a text has
                more tokens than there is memory for.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if (mask.diff(dim=1) > 0).any():
            raise FinepruneError("llama.cpp takes padding on the right alone (padding_side='right')")
        if token_type_ids is not None and token_type_ids.any():
            raise FinepruneError("llama.cpp takes token_type_ids of 0 alone, and some are not")
        states = torch.zeros(*input_ids.shape, self._width)
        for first in range(0, len(states), self._texts):
            texts = slice(first, first + self._texts)
            rows, positions = mask[texts].nonzero(as_tuple=True)
            states[texts][rows, positions] = self._states(input_ids[texts][rows, positions], positions, rows)
        return BaseModelOutputWithPooling(
            last_hidden_state=states, pooler_output=None if self._pooler is None else self._pooler(states)
        )

    def _states(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Return the last hidden states of the tokens, (tokens, features), in llama.cpp's memory."""
        number, batch = len(ids), self._batch
        if number > self._tokens:  # llama.cpp would end the process
            raise FinepruneError(f"texts of {number} tokens, and the context is for {self._tokens}")
        batch.n_tokens = number
        for place, given in ((batch.token, ids), (batch.pos, positions)):
            np.ctypeslib.as_array(place, (number,))[:] = given.numpy()
        np.ctypeslib.as_array(batch.n_seq_id, (number,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (number,))[:] = 1
        for index, row in enumerate(rows.tolist()):
            batch.seq_id[index][0] = row
        if self._library.llama_encode(self._context, batch):
            raise FinepruneError("llama.cpp cannot encode the texts")
        found = self._library.llama_get_embeddings(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(found, (number, self._width)))
