"""One of the processes of test_ranks.py: every check, all ranks together. A check raises where something is
wrong.
"""

import copy
import datetime
import functools
import itertools
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).resolve().parents[2]))

from several import report
from spread import STEPS, Network, batches, config, mesh, network, rank, ranks, shard, train

from fineprune import FinepruneError, PruningConfig, finalize, prepare, summary
from fineprune.pruning import selection
from fineprune.pruning.distributed import agreement
from fineprune.pruning.distributed.gathering import gather_state_dict
from fineprune.pruning.distributed.ranks import Shards, local
from fineprune.pruning.finalizing import fold
from fineprune.pruning.methods import hard_concrete


def same_training(engine, method, scope, accumulate=1, precision="float32", **settings):
    """As one process: losses, thresholds, masks."""
    policy, autocast, tolerance = None, False, 2e-5
    if precision == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        autocast, tolerance = engine == "ddp", 3e-2
    sample = hard_concrete.sample
    hard_concrete.sample = hard_concrete.expected  # or each process draws its own
    counts = []
    try:
        _, one, expected = train("one", config(method, scope, **settings), accumulate)
        model, pruner, losses = train(
            engine,
            config(method, scope, **settings),
            accumulate,
            policy,
            autocast,
            lambda pruner: counts.append(pruner.density),
        )
    finally:
        hard_concrete.sample = sample
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    assert len(set(counts)) > 2
    if not settings:  # with a fixed lambda the density is an outcome
        total = sum(target.weight.numel() for target in one.targets)
        assert counts[-1] == one.density
        if (scope or one.config.traits.scopes[0]) == "global":
            assert counts[-1] == round(0.3 * total) / total
    for ours, theirs in zip(pruner.targets, one.targets, strict=True):
        assert local(ours.weight).dtype == torch.float32
        if one.config.traits.learns_scores:
            assert local(ours.scores).dtype == torch.float32
        if precision == "float32":
            assert torch.equal(ours.masked.kept(), theirs.masked.kept())
    if precision == "float32":
        assert pruner.threshold == pytest.approx(one.threshold, rel=1e-4)
        assert pruner.lambda_ == pytest.approx(one.lambda_, rel=1e-3)
        assert pruner.changed == one.changed
        assert summary(model).kept == summary(one.model).kept


# -- selection --------------------------------------------------------------------------------


def same_selection(dtype, key, each, floor, mixed):
    """Whatever the shapes, and however many scores are equal: the masks of `selection.top_v`."""
    generator = torch.Generator().manual_seed(7)
    shapes = [(7, 5), (1, 4), (16, 3), (5, 1)]
    for spread, density in itertools.product((0, 1, 30), (0.001, 0.1, 0.5, 0.9, 1.0)):
        scores = [torch.randn(shape, generator=generator) for shape in shapes]
        if spread:  # few different scores, and zeros of both signs
            scores = [(score * spread).round() / spread for score in scores]
        scores[2] -= 2  # falls below the floor
        scores[0][0, 0], scores[2][3, 1] = float("inf"), float("-inf")
        scores = [score.to(dtype) for score in scores]
        spread_out = [distribute_tensor(score, mesh(), [Shard(0)]) for score in scores]
        if mixed:
            spread_out[1] = scores[1]
        expected = [torch.zeros(shape, dtype=torch.bool) for shape in shapes]
        found = [torch.zeros(shape, dtype=torch.bool) for shape in shapes]
        if each:
            cuts = [
                selection.top_v([score], density, [mask], key)
                for score, mask in zip(scores, expected, strict=True)
            ]
        else:
            cuts = [selection.top_v(scores, density, expected, key, floor)]
        shards = Shards.of(spread_out)
        assert shards.top_v(spread_out, density, found, key, floor, each) == cuts
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def nan_is_an_error_everywhere():
    score = torch.zeros(5, 3)
    score[0, 1] = float("nan")  # on rank 0 alone
    spread_out = [distribute_tensor(score, mesh(), [Shard(0)])]
    with pytest.raises(FinepruneError, match="1 importance scores are NaN"):
        Shards.of(spread_out).top_v(spread_out, 0.5, [torch.zeros(5, 3, dtype=torch.bool)])


def large_selection():
    score = torch.randn(400, 300, generator=torch.Generator().manual_seed(1))
    spread_out = [distribute_tensor(score, mesh(), [Shard(0)])]
    masks = [torch.zeros(2, 400, 300, dtype=torch.bool)[i] for i in range(2)]
    for density in (0.03, 0.5):
        (cut,) = Shards.of(spread_out).top_v(spread_out, density, masks[:1])
        assert cut == selection.top_v([score], density, masks[1:])
        assert torch.equal(*masks)


def columns_are_refused():
    spread_out = distribute_tensor(torch.zeros(4, 6), mesh(), [Shard(1)])
    with pytest.raises(FinepruneError, match="only rows may be spread"):
        Shards.of([spread_out])


# -- the penalty ------------------------------------------------------------------------------


def penalty_and_its_gradient(method):
    """R is the mean over the whole matrices, and each shard gets its part of the gradient of that."""
    one, several = (prepare(network(), config(method, penalty=4.0), STEPS) for _ in range(2))
    shard(several.model)
    values = []
    for pruner in (one, several):
        pruner.steps_done = STEPS - 1
        pruner.step()
        value = pruner.penalty()
        value.backward()
        values.append(float(value.detach()))
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    assert values[0] > 0
    for ours, theirs in zip(several.targets, one.targets, strict=True):
        torch.testing.assert_close(ours.scores.grad.full_tensor(), theirs.scores.grad)


# -- what is left -----------------------------------------------------------------------------


def gathered_and_finalized(method):
    """The state dict of one process's finalized model, before `finalize` and after."""
    model, pruner, _ = train("fsdp", config(method))
    masks = [target.masked.kept() for target in pruner.targets]
    assert pruner.density == sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    before = gather_state_dict(model)
    left = summary(model)
    assert finalize(model) is model
    after = gather_state_dict(model)
    assert (summary(model).kept, summary(model).parameters) == (left.kept, left.parameters)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    if rank():
        assert before == after == {}
        return
    assert set(before) == set(after) == set(network().state_dict())
    for key in before:
        assert type(before[key]) is torch.Tensor
        assert torch.equal(before[key], after[key])
    ordinary = Network()
    ordinary.load_state_dict(before)
    assert summary(ordinary).kept == left.kept
    for target, mask in zip(pruner.targets, masks, strict=True):
        assert torch.equal(ordinary.get_submodule(target.name).weight != 0, mask)


def gathered_is_what_answers(method):
    """The gathered model gives the answers of the one that was trained."""
    model, _, _ = train("fsdp", config(method))
    model.eval()
    x = next(batches())[0]
    with torch.no_grad():
        answers = model(x)
    state = gather_state_dict(model)
    if not rank():
        ordinary = Network()
        ordinary.load_state_dict(state)
        torch.testing.assert_close(ordinary(x), answers)


# -- agreement --------------------------------------------------------------------------------


def masks_that_differ_are_found():
    _, pruner, _ = train("ddp", config())
    if rank() == ranks() - 1:
        mask = pruner.targets[2].masked.mask
        mask[4, 3] = ~mask[4, 3]
        pruner.targets[4].masked.mask[0, 0] ^= True
    with pytest.raises(FinepruneError, match=r"step 8: .* first of blocks\.1\.up \(2 differ"):
        pruner.check_masks()


def every_flag_counts():
    mask = torch.rand(13, 11) > 0.5
    numbers = {agreement.fingerprint(mask)}
    for row, column in itertools.product(range(13), range(11)):
        other = mask.clone()
        other[row, column] ^= True
        numbers.add(agreement.fingerprint(other))
        other[column % 13, row % 11] ^= True
        numbers.add(agreement.fingerprint(other))
    assert len(numbers) > 13 * 11
    assert agreement.fingerprint(mask) == agreement.fingerprint(mask.t().contiguous().t())


def settings_that_differ(what, match):
    last = rank() == ranks() - 1
    model, settings, steps = network(), config(), STEPS
    if last and what == "density":
        settings = PruningConfig("movement", density=0.2, warmup=1, cooldown=2)
    if last and what == "total_steps":
        steps += 1
    if last and what == "matrices":
        model.blocks = model.blocks[:2]
    if last and what == "failure":
        model.blocks = nn.ModuleList()
    mine = "no linear layers" if last and what == "failure" else match
    with pytest.raises(FinepruneError, match=mine):
        prepare(model, settings, steps).step()


def shards_before_prepare_are_refused():
    with pytest.raises(FinepruneError, match="prepare before fully_shard"):
        prepare(shard(network()), config(), STEPS)


def ddp_does_not_send_masks():
    """Two forward passes before a backward pass: a broadcast in place would spoil the first."""
    model = network()
    prepare(model, config(), STEPS)
    parallel = DistributedDataParallel(model)
    x = next(batches())[0]
    (parallel(x).sum() + parallel(x).sum()).backward()
    assert fold(copy.deepcopy(model)).state_dict().keys() == network().state_dict().keys()


def gates_are_each_process_s_own():
    torch.manual_seed(100 + rank())
    _, pruner, _ = train("ddp", config("l0"))  # checks the masks after each step
    total = sum(target.weight.numel() for target in pruner.targets)
    assert pruner.density == round(0.3 * total) / total


CHOICES = [
    ("magnitude", "local"),
    ("magnitude", "global"),
    ("movement", "local"),
    ("movement", "global"),
    ("soft_movement", None),
    ("l0", None),
]
FURTHER = ("st3", "pdp", "powerprop", "proximal", "smp")


def measuring_whole_matrices_is_refused_of_shards():
    settings = config("flow")
    with pytest.raises(FinepruneError, match=r"method='flow': it measures whole matrices, .* use DDP"):
        train("fsdp", settings)


def checks(whole):
    """Names, and what to call."""
    yield "nan", nan_is_an_error_everywhere
    yield "large", large_selection
    yield "columns", columns_are_refused
    for key, each, floor, mixed in [
        (None, False, 0.0, False),
        (torch.abs, False, 0.0, True),
        (None, True, 0.0, False),
        (None, False, 0.3, True),
    ]:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            name = f"selection-{'abs' if key else 'plain'}-{'each' if each else 'all'}-{floor}-{dtype}"
            yield name, functools.partial(same_selection, dtype, key, each, floor, mixed)
    for method in ("soft_movement", "l0"):
        yield f"penalty-{method}", functools.partial(penalty_and_its_gradient, method)
    for method in ("movement", "l0"):
        yield f"gathered-{method}", functools.partial(gathered_and_finalized, method)
        yield f"answers-{method}", functools.partial(gathered_is_what_answers, method)
    yield "masks", masks_that_differ_are_found
    yield "flags", every_flag_counts
    for what, match in [
        ("density", r"disagree about density \(process \d has 0\.[23]\)"),
        ("total_steps", "disagree about total_steps"),
        ("matrices", "disagree about matrices"),
        ("failure", "another process of this training failed"),
    ]:
        yield f"differ-{what}", functools.partial(settings_that_differ, what, match)
    yield "refused", shards_before_prepare_are_refused
    yield "measured-fsdp", measuring_whole_matrices_is_refused_of_shards
    few = {"mask_interval": 2, "options": {"block": 1}}
    yield "measured-ddp", functools.partial(same_training, "ddp", "obert", None, **few)
    pull = {"options": {"pruned_decay": 0.01}}
    for engine in ("ddp", "fsdp"):
        yield f"pull-{engine}", functools.partial(same_training, engine, "magnitude", None, 2, **pull)
    yield "broadcast", ddp_does_not_send_masks
    yield "gates", gates_are_each_process_s_own
    usual = [("ddp", choice, 2, "float32") for choice in CHOICES[::2]]
    usual += [("fsdp", choice, 1, "float32") for choice in CHOICES]
    usual += [(engine, (method, None), 1, "float32") for method in FURTHER for engine in ("ddp", "fsdp")]
    usual += [("fsdp root", CHOICES[4], 2, "float32"), ("fsdp", CHOICES[4], 2, "bfloat16")]
    every = itertools.product(("ddp", "fsdp", "fsdp root"), CHOICES, (1, 2), ("float32", "bfloat16"))
    for engine, (method, scope), accumulate, precision in every if whole else usual:
        name = f"train-{engine}-{method}-{scope}-{accumulate}-{precision}"
        yield name, functools.partial(same_training, engine, method, scope, accumulate, precision)
    for engine, (method, rate) in itertools.product(
        ("ddp", "fsdp", "fsdp root"), (("soft_movement", 0.5), ("l0", 1.0))
    ):
        fixed = {"penalty": 20.0, "score_init": "zero", "score_lr": rate}
        yield (
            f"train-{engine}-{method}-fixed",
            functools.partial(same_training, engine, method, None, **fixed),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    report(checks("whole" in sys.argv), Path(sys.argv[1]))
    distributed.destroy_process_group()
