"""Model folders, compact and dense, and deltas: forged configs, tokenizers and weights, with right checksums.

Without right checksums a compact folder is refused or answers as before. Where the runtime and torch both
open a folder, they give the same answers: settings that only one of them reads would be a silent change.
"""

import json
import random
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuzz import weights
from fuzz.mutation import ODD, SMALL, changed, dumped, mangled
from runtime.models import make_model, make_tokenizer, save

import fineprune
import fineprune_runtime
from fineprune.checkpoint.loading import open_model, to_dense
from fineprune.errors import FinepruneError
from fineprune.tasks.questions.prediction import answer
from fineprune.tasks.text.prediction import predict
from fineprune.tasks.tokens.prediction import predict_entities
from fineprune.training.run.inspection import inspect_folder
from fineprune_runtime.errors import EngineError
from fineprune_runtime.manifest import KEY
from fineprune_runtime.predictor import AnswerPredictor

WEIGHTS, DELTA = "model.safetensors", "delta.safetensors"
JSON = ("config.json", "tokenizer.json", "tokenizer_config.json")
BESIDE = (
    "special_tokens_map.json", "added_tokens.json", "vocab.txt", "merges.txt", "tokenizer.model",
    "fineprune.json", "model.safetensors.index.json", "generation_config.json", "chat_template.jinja",
)  # fmt: skip
TEXTS = ["a good film", "very bad Anna London ?", "", "x é😀 " * 9]
CONTEXTS = ["the good film very bad", "Anna very good film", "London", "a film"]
MODELS = (
    ("bert", "text", "float32", "keep"),
    ("roberta", "text", "int8", "int8"),
    ("distilbert", "tokens", "float16", "float16"),
    ("electra", "questions", "int8", "int4"),
    ("xlm-roberta", "text", "float32", "keep"),
)


class Honest(NamedTuple):
    """A model folder that is right."""

    kind: str
    task: str
    compact: bool
    files: dict[str, bytes]
    target: Any
    """Of `weights`, to forge packed weights; None for a dense folder."""


class Forged(NamedTuple):
    """Its files after a change."""

    files: dict[str, bytes]
    declared: bool
    """Whether the change may give other answers: there is no checksum, or it was made right."""


def read_honest(folder: Path, kind: str, task: str, compact: bool) -> Honest:
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return Honest(kind, task, compact, files, weights.read_target(folder) if compact else None)


def make_all(folder: Path) -> list[Honest]:
    """Each of `MODELS` compact and dense."""
    made = []
    for kind, task, values, embeddings in MODELS:
        place = folder / f"{kind}-{task}"
        model, tokenizer = save(place, kind, task, values, embeddings)
        made.append(read_honest(place, kind, task, compact=True))
        dense = folder / f"{kind}-{task}-dense"
        to_dense(model).save_pretrained(dense)
        tokenizer.save_pretrained(dense)
        made.append(read_honest(dense, kind, task, compact=False))
    return made


def forge(chance: random.Random, honest: Honest, others: list[Honest], odd: list[Any]) -> Forged:
    """Change one file or two, and, most times, the checksums with them."""
    files, declared = dict(honest.files), not honest.compact
    for _ in range(chance.choice((1, 1, 1, 2))):
        action = chance.randrange(12)
        name = chance.choice((*JSON, "config.json"))
        if action < 6 and name in files:
            try:
                document = json.loads(files[name])
            except (ValueError, RecursionError):  # changed before
                continue
            files[name] = dumped(changed(chance, document, odd, chance.choice((1, 1, 1, 2)))).encode()
        elif action < 8 and WEIGHTS in files:
            if honest.compact:
                case = weights.make_case(chance, honest.target)
                files[WEIGHTS], declared = case.content, declared or case.forged
            else:
                files[WEIGHTS] = forged_tensors(chance, files[WEIGHTS])
        elif action == 8:
            name = chance.choice(list(files))
            files[name] = mangled(chance, files[name])
        elif action == 9:
            files.pop(chance.choice(list(files)), None)
        elif action == 10:
            other = chance.choice(others).files
            name = chance.choice(list(other))
            files[name] = other[name]
            declared = declared or name == WEIGHTS
        else:
            files[chance.choice(BESIDE)] = dumped(chance.choice(ODD)).encode()
            declared = True
    if honest.compact and chance.random() < 0.8:
        files, sealed = seal(chance, files)
        declared = declared or sealed
    return Forged(files, declared)


def seal(chance: random.Random, files: dict[str, bytes]) -> tuple[dict[str, bytes], bool]:
    """Make the checksums of the files beside the weights right, where the manifest can be read."""
    content = files.get(WEIGHTS, b"")
    try:
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        manifest = json.loads(header["__metadata__"][KEY])
        listed = dict(manifest["files"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return files, False
    listed = {name: zlib.crc32(files[name]) if name in files else crc for name, crc in listed.items()}
    if chance.random() < 0.1:
        listed = chance.choice(({}, changed(chance, listed), chance.choice(ODD)))
    header["__metadata__"][KEY] = dumped(manifest | {"files": listed})
    text = json.dumps(header).encode()
    return files | {WEIGHTS: len(text).to_bytes(8, "little") + text + content[begin:]}, True


def forged_tensors(chance: random.Random, content: bytes) -> bytes:
    """A safetensors file without checksums: other names, shapes, types, values."""
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:begin])
    except (ValueError, RecursionError):
        return content
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        low, high = about["data_offsets"]
        tensors[name] = weights.Stored(about["dtype"], about["shape"], content[begin + low : begin + high])
    name = chance.choice(list(tensors))
    dtype, shape, data = tensors[name]
    action = chance.randrange(8)
    if action == 0:
        del tensors[name]
    elif action == 1:
        tensors[chance.choice((f"{name}x", name.replace("0", "7"), "more", ""))] = tensors.pop(name)
    elif action == 2:
        tensors[name] = weights.Stored(dtype, shape[::-1], data)
    elif action == 3:
        tensors[name] = weights.Stored(
            *chance.choice(((dtype, [1, *shape], data), (dtype, [0], b""), ("I32", shape, data)))
        )
    elif action == 4 and dtype == "F32":
        values = np.frombuffer(data, "f4").astype("f2")
        tensors[name] = weights.Stored("F16", shape, values.tobytes())
    elif action in (5, 6) and dtype == "F32":
        values = np.frombuffer(data, "f4").copy()
        values[chance.randrange(len(values))] = chance.choice(weights.FLOATS)
        tensors[name] = weights.Stored(dtype, shape, values.tobytes())
    else:
        other = chance.choice(list(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    return weights.packed_file(metadata, tensors)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def runtime_answers(folder: Path, task: str) -> Any:
    """What the runtime answers."""
    predictor = fineprune_runtime.load(folder, threads=1)
    pairs = CONTEXTS if isinstance(predictor, AnswerPredictor) else None
    return predictor.predict([*TEXTS[:2], "x"] if pairs else TEXTS, pairs[:3] if pairs else None)


def torch_answers(folder: Path, task: str) -> Any:
    """What torch answers."""
    model, tokenizer, _ = open_model(folder, need_tokenizer=True)
    if task == "text":
        return predict(model, tokenizer, TEXTS)
    if task == "tokens":
        return predict_entities(model, tokenizer, TEXTS)
    return answer(model, tokenizer, [*TEXTS[:2], "x"], CONTEXTS[:3])


def differ(one: Any, other: Any, tolerance: float) -> str | None:
    """Where two answers differ; scores by more than the tolerance."""
    if type(one) is float or type(other) is float:
        return None if abs(one - other) <= tolerance * (1 + abs(one)) else f"{one} and {other}"
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{one} and {other}"
        return next((why for pair in zip(one, other, strict=True) if (why := differ(*pair, tolerance))), None)
    if hasattr(one, "__dataclass_fields__") and hasattr(other, "__dataclass_fields__"):
        return differ(list(vars(one).values()), list(vars(other).values()), tolerance)
    return None if one == other else f"{one!r} and {other!r}"


class Runtime:
    """`fineprune_runtime.load` and `predict`."""

    share = 44.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.all = make_all(folder)
        self.size = max(sum(map(len, honest.files.values())) for honest in self.all)
        self.right = [
            runtime_answers(write(folder / f"again{index}", honest.files), honest.task)
            for index, honest in enumerate(self.all)
        ]

    def check(self, chance: random.Random, scratch: Path) -> str:
        index = chance.randrange(len(self.all))
        honest = self.all[index]
        forged = forge(chance, honest, self.all, ODD)
        try:
            answers = runtime_answers(write(scratch / "model", forged.files), honest.task)
        except EngineError:
            return "refused"
        why = differ(answers, self.right[index], 0.0)
        if why is not None and not forged.declared:
            raise AssertionError(f"answers otherwise, and no checksum told: {why}")
        return "same" if why is None else "other"


class Torch:
    """`open_model` and its answers, `fineprune.load`, `inspect_folder`; the runtime beside them."""

    share = 2.5
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        self.all = make_all(folder)
        self.size = max(sum(map(len, honest.files.values())) for honest in self.all)
        self.right = []
        for index, honest in enumerate(self.all):
            place = write(folder / f"again{index}", honest.files)
            inspect_folder(place)
            self.right.append(torch_answers(place, honest.task))
            why = differ(runtime_answers(place, honest.task), self.right[-1], 0.02)
            assert why is None, why

    def check(self, chance: random.Random, scratch: Path) -> str:
        index = chance.randrange(len(self.all))
        honest = self.all[index]
        forged = forge(chance, honest, self.all, SMALL)
        place = write(scratch / "model", forged.files)
        if chance.random() < 0.2:
            try:
                inspect_folder(place)
            except FinepruneError:
                return "inspect: refused"
            return "inspect: accepted"
        if not honest.compact and chance.random() < 0.1:
            try:
                fineprune.save_compact(fineprune.load(place), scratch / "small")
            except FinepruneError:
                return "compact: refused"
            return "compact: accepted"
        try:
            answers = torch_answers(place, honest.task)
        except FinepruneError:
            return "refused"
        why = differ(answers, self.right[index], 1e-6)
        if why is not None and not forged.declared:
            raise AssertionError(f"answers otherwise, and no checksum told: {why}")
        try:
            beside = runtime_answers(place, honest.task)
        except EngineError:
            return "torch alone"
        if (apart := differ(beside, answers, 0.02)) is not None:
            raise AssertionError(f"the runtime and torch answer otherwise: {apart}")
        return "same" if why is None else "other"


class Deltas:
    """`fineprune.load` of a delta."""

    share = 1.0
    seconds = 2.0

    def __init__(self, folder: Path) -> None:
        base, model = make_model("bert", "text", pruned=False), make_model("bert", "text")
        base.save_pretrained(folder / "base")
        self.base = folder / "base"
        fineprune.save_delta(model, folder / "delta", self.base, make_tokenizer("bert"))
        self.files = {path.name: path.read_bytes() for path in (folder / "delta").iterdir()}
        self.size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.state = fineprune.load(folder / "delta").state_dict()

    def check(self, chance: random.Random, scratch: Path) -> str:
        files = dict(self.files)
        name = chance.choice(("config.json", "fineprune.json", "fineprune.json", DELTA, DELTA))
        declared = name != DELTA
        if name == DELTA:
            files[name] = (
                mangled(chance, files[name]) if chance.random() < 0.5 else forged_tensors(chance, files[name])
            )
        else:
            files[name] = dumped(changed(chance, json.loads(files[name]), SMALL)).encode()
        place = write(scratch / "delta", files)
        try:
            state = fineprune.load(place, base=chance.choice((None, self.base))).state_dict()
        except FinepruneError:
            return "refused"
        same = state.keys() == self.state.keys() and all(
            torch.equal(tensor, self.state[key]) for key, tensor in state.items()
        )
        if not same and not declared:
            raise AssertionError("a delta with other weights was accepted")
        return "same" if same else "other"
