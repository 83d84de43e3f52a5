"""Load a model folder, and choose the kind of predictor for it."""

import logging
import os
from numbers import Integral
from pathlib import Path
from typing import Any

from fineprune_runtime.architectures import (
    architecture,
    has_task,
    settings,
    task,
)
from fineprune_runtime.classes import problem
from fineprune_runtime.codec import DENSE_FROM
from fineprune_runtime.cross_encoders import ABOUT, has_sigmoid, is_cross_encoder
from fineprune_runtime.disentangled import relative_positions
from fineprune_runtime.embeddings import read_embeddings
from fineprune_runtime.encoder_layers import each_layer, matrix_shapes
from fineprune_runtime.engine import Encoder
from fineprune_runtime.errors import EngineError
from fineprune_runtime.folder import Folder
from fineprune_runtime.heads import labels, read_head
from fineprune_runtime.layers import Matrix
from fineprune_runtime.modules import MODULES
from fineprune_runtime.pooling import read_pooling
from fineprune_runtime.predictor import (
    AnswerPredictor,
    EntityPredictor,
    MultiLabelPredictor,
    Network,
    Predictor,
    TextPredictor,
)
from fineprune_runtime.processors import usable_processors
from fineprune_runtime.relative import relative_bias
from fineprune_runtime.results import TEXT_PAIRS, usual_length
from fineprune_runtime.sentence_settings import UNSET, cross_encoder_settings, read_sentence_settings
from fineprune_runtime.sentences import SentencePredictor
from fineprune_runtime.tokens import Tokens

_log = logging.getLogger("fineprune_runtime")

_KINDS: dict[str, type[Predictor]] = {
    "text": TextPredictor,
    "tokens": EntityPredictor,
    "questions": AnswerPredictor,
}


def load(folder: str | Path, dtype: str = "float32", threads: int | None = None) -> Predictor:
    """Return a predictor for the model in a folder.

    Args:
        folder: packed by fineprune, or with ordinary safetensors. The model classifies texts or tokens,
            answers questions, or has the files of sentence-transformers beside it and embeds texts. It is a
            BERT, RoBERTa, XLM-RoBERTa, ELECTRA, DistilBERT, MPNet, ModernBERT or DeBERTa,
            or another with their layers (`architectures`).
        dtype: "float32", "bfloat16" or "int8", the type of the calculations in the encoder.
        threads: the number of threads; None: one for each core, and no more than a container may use.

    Raises:
        EngineError: the folder does not have a complete model, the engine cannot run its architecture, or
            this processor does not have the dtype.
    """
    if threads is None:
        threads = usable_processors()
    given: Any = threads  # of a caller without types
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise EngineError(f"threads is {threads!r}, expected a whole number, 1 or more")
    try:
        return _read(Folder(folder), dtype, int(threads))
    except MemoryError as error:
        raise EngineError(
            f"{folder}: its weights do not fit into memory; are they what they claim?"
        ) from error


def _read(folder: Folder, dtype: str, threads: int) -> Predictor:
    """Return the predictor for an opened folder."""
    config = folder.config
    if not has_task(config) and os.path.lexists(folder.path / MODULES):
        return _read_sentences(folder, dtype, threads)
    kind = task(config)
    prefix = f"{architecture(config).base}."
    embeddings, head, names = read_embeddings(folder, prefix), read_head(folder), labels(config)
    crossing = kind == "text" and is_cross_encoder(config, folder.json(ABOUT, needed=False))
    sentences = cross_encoder_settings(folder) if crossing else UNSET
    tokens = Tokens(folder, embeddings.limit, sentences)
    encoder = _encoder(folder, prefix, dtype, threads)
    _check_surplus(folder, prefix)
    solves = problem(config.get("problem_type"), len(names))
    made = MultiLabelPredictor if kind == "text" and solves == "labels" else _KINDS[kind]
    predictor = made(Network(embeddings, encoder, head), tokens, names, solves == "value")
    if kind == "text" and isinstance(paired := config.get(TEXT_PAIRS), bool):
        predictor.paired = paired
    if crossing:
        _set_cross_encoder(predictor, folder, tokens.usual)
    predictor.usual = usual_length(config, predictor.usual)
    if isinstance(predictor, AnswerPredictor):
        predictor.unanswerable = config.get("unanswerable_questions") is True
    return predictor


def _set_cross_encoder(predictor: Predictor, folder: Folder, usual: int) -> None:
    """Let a cross-encoder score pairs as the class of sentence-transformers does, at its own length."""
    about = folder.json(ABOUT, needed=False)
    predictor.usual = usual
    if predictor.paired is None:
        predictor.paired = True
    sigmoid = has_sigmoid(folder.config, about, len(predictor.labels))
    if isinstance(predictor, TextPredictor):
        predictor.sigmoid = sigmoid


def _read_sentences(folder: Folder, dtype: str, threads: int) -> SentencePredictor:
    """Return the predictor for an opened folder of a sentence model, a base model with or without a head."""
    pooling = read_pooling(folder)
    known = architecture(folder.config)
    prefix = f"{known.base}."
    if f"{prefix}{known.words}.weight" not in folder:
        prefix = ""
    embeddings = read_embeddings(folder, prefix)
    tokens = Tokens(folder, embeddings.limit, read_sentence_settings(folder, "feature-extraction"))
    encoder = _encoder(folder, prefix, dtype, threads)
    _check_surplus(folder, prefix, besides=f"{prefix}pooler.")
    return SentencePredictor(Network(embeddings, encoder, pooling), tokens, folder)


def _check_surplus(folder: Folder, prefix: str, besides: str | None = None) -> None:
    """Raise `EngineError` if a folder has weights that config.json does not ask for.

    Ordinary files may hold another head or a pooler beside the layers; fineprune's hold the model alone.
    Its weights that begin with `besides` need not be read.
    """
    beginning = "" if folder.packed else f"{prefix}{architecture(folder.config).layer}."
    unused = [name for name in folder.unused(beginning) if besides is None or not name.startswith(besides)]
    if unused:
        raise EngineError(
            f"{folder.path}: {len(unused)} of its weights are not of the model in config.json, such as "
            f"{unused[0]}; config.json was changed, or is of another model: save or fetch it again"
        )


def _encoder(folder: Folder, prefix: str, dtype: str, threads: int) -> Encoder:
    """Return the encoder of the model in a folder; log a warning if it was never pruned."""
    shapes = matrix_shapes(folder.config)
    start = f"{prefix}{architecture(folder.config).layer}."
    stored = total = 0

    def matrix(name: str) -> Matrix:
        nonlocal stored, total
        known = shapes[name.removeprefix(start).partition(".")[2]]
        rows, columns = folder.shape(name) if folder.shrunk else known  # which `each_layer` has checked
        weight = folder.matrix(name, (rows, columns))
        stored, total = stored + len(weight.values), total + weight.shape[0] * weight.shape[1]
        return weight

    # Read one layer at a time: its matrices take more memory than the packed layer.
    stored_shape = folder.shape if folder.shrunk else None
    layers = each_layer(folder.config, matrix, folder.vector, prefix, stored_shape)
    encoder = Encoder(
        layers,
        **settings(folder.config),
        bias=relative_bias(folder.config, folder.dense, prefix),
        relative=relative_positions(folder.config, folder.dense, prefix),
        dtype=dtype,
        threads=threads,
    )
    if stored > DENSE_FROM * total and not folder.shrunk:
        share = 100 * stored / total
        _log.warning("%s: was never pruned, %.0f %% of weights remain: it runs dense", folder.path, share)
    return encoder
