"""The engine against torch, for each architecture that it runs whole.

    python benchmarks/engine_architectures.py [--density 0.1 0.03] [--case 1x128] [--architecture bert ...]

Models have the sizes of their usual base version, random weights, and masks with the same density in every
matrix; embeddings are included. A ratio is the median over interleaved rounds of torch's time / the engine's.
An error is the root mean square of the difference from torch's last hidden states, over theirs. One thread.
"""

import argparse
import copy

import torch
import transformers

import fineprune
from fineprune.inference.bench.timing import compare, interleave, processor
from fineprune.pruning.targets import find_targets
from fineprune_runtime import dtypes

WORDS = 1000  # the size of the vocabulary costs the engine and torch the same
VOCABULARY = {"vocab_size": WORDS, "pad_token_id": 1} | {
    f"{name}_token_id": 2 for name in ("bos", "eos", "cls", "sep")
}
SETTINGS = {
    "bert": {},
    "roberta": {},
    "camembert": {},
    "xlm-roberta": {},
    "electra": {
        "embedding_size": 768,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "distilbert": {},
    "mpnet": {},
    "modernbert": {},
    "deberta-v2": {  # deberta-v3-base
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
}


def make(architecture: str, density: float) -> torch.nn.Module:
    """A model in which each matrix keeps so much of its weights, at random places."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(architecture, **SETTINGS[architecture], **VOCABULARY)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    for module in find_targets(model).values():
        weight = module.get_parameter("weight")
        weight *= torch.rand_like(weight) < density
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--architecture", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--density", nargs="+", type=float, default=[0.1, 0.03])
    parser.add_argument("--case", nargs="+", default=["1x128"], help="BATCHxLENGTH")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    engines = [f"{dtype}{end}" for end in (", times", ", error") for dtype in dtypes()]
    print(f"| architecture | zeros | batch x length | torch, ms | {' | '.join(engines)} |")
    print("|---|---|---|" + "---:|" * (1 + len(engines)))
    for architecture in asked.architecture:
        for density in asked.density:
            dense = make(architecture, density)
            models = {"torch": dense} | {
                dtype: fineprune.accelerate(copy.deepcopy(dense), dtype=dtype, threads=1)
                for dtype in dtypes()
            }
            for case in asked.case:
                batch, length = map(int, case.split("x"))
                ids = torch.randint(10, WORDS, (batch, length), generator=torch.Generator().manual_seed(1))
                print(line(architecture, density, case, models, ids, asked.rounds), flush=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"\n{processor()}, {versions}, {asked.rounds} rounds")


@torch.inference_mode()
def line(
    architecture: str,
    density: float,
    case: str,
    models: dict[str, torch.nn.Module],
    ids: torch.Tensor,
    rounds: int,
) -> str:
    """A row of the table."""
    answers = {name: model(ids).last_hidden_state for name, model in models.items()}
    timings = compare(
        interleave({name: lambda m=model: m(ids) for name, model in models.items()}, rounds), "torch"
    )
    exact = answers.pop("torch")
    errors = [((y - exact).square().mean() / exact.square().mean()).sqrt().item() for y in answers.values()]
    ratios = [f"{timings[name].ratio:.1f}" for name in answers]
    cells = [architecture, f"{1 - density:.0%}", case, f"{timings['torch'].milliseconds:.1f}", *ratios]
    return f"| {' | '.join([*cells, *(f'{error:.0e}' for error in errors)])} |"


if __name__ == "__main__":
    main()
