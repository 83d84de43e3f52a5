import dataclasses
import json

import pytest

from fineprune import FinepruneError, FinepruneWarning, PruningConfig
from fineprune.config import METHODS


def test_defaults():
    config = PruningConfig()
    assert (config.method, config.density, config.warmup, config.cooldown) == ("movement", 0.1, 0.1, 0.3)
    assert (config.scope, config.score_lr, config.score_init, config.penalty) == (None,) * 4
    assert config.freeze_embeddings
    assert config.mask_interval == 1
    assert config.controlled


def test_table_1():
    assert {name: traits.scopes for name, traits in METHODS.items()} == {
        "magnitude": ("local", "global"),
        "l0": ("global",),
        "movement": ("local", "global", "type"),
        "soft_movement": ("global", "type"),
        "platon": ("global",),
        "pins": ("global",),
        "fisher": ("global", "local"),
        "admm": ("global",),
        "st3": ("global",),
        "pdp": ("local",),
        "powerprop": ("local", "global"),
        "proximal": ("global",),
        "obert": ("global",),
        "flow": ("global", "local"),
        "grain": ("global", "local"),
        "smp": ("type", "local", "global"),
        "keep_zeros": ("local",),
    }
    takers = {name: traits.penalty_decides for name, traits in METHODS.items() if traits.takes_penalty}
    assert takers == {"l0": True, "movement": False, "soft_movement": True, "smp": False}
    assert [name for name, traits in METHODS.items() if not traits.learns_scores] == [
        "magnitude",
        "platon",
        "pins",
        "fisher",
        "admm",
        "st3",
        "pdp",
        "powerprop",
        "proximal",
        "obert",
        "flow",
        "grain",
        "keep_zeros",
    ]
    assert [name for name, traits in METHODS.items() if traits.holds_zeros] == ["keep_zeros"]


def test_an_older_name_is_taken_with_a_warning():
    with pytest.warns(FinepruneWarning, match="method='frozen' is called 'keep_zeros' now"):
        config = PruningConfig.from_dict({"method": "frozen"})
    assert config == PruningConfig("keep_zeros")


def test_fields_cannot_be_set():
    config = PruningConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.density = 0.5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_scope(method):
    for scope in METHODS[method].scopes:
        assert PruningConfig(method, scope=scope).traits is METHODS[method]


GOOD = [
    {"density": 1},
    {"density": 1e-9},
    {"warmup": 0, "cooldown": 0},
    {"warmup": 0.0, "cooldown": 0.99},
    {"warmup": 500, "cooldown": 0.5},
    {"method": "l0", "penalty": 0},
    {"method": "soft_movement", "penalty": 125.0},
    {"mask_interval": 100},
    {"targets": "query"},
    {"score_lr": 1},
]


@pytest.mark.parametrize("settings", GOOD)
def test_values_at_the_edge_are_taken(settings):
    config = PruningConfig(**settings)
    assert config.controlled == ("penalty" not in settings)


BAD = [
    ({"method": "movment"}, r"method='movment': did you mean movement\? allowed are magnitude, l0"),
    (
        {"method": "xyz"},
        r"method='xyz': allowed are magnitude, l0, movement, soft_movement, platon, pins, fisher, admm",
    ),
    ({"method": None}, "method=None"),
    ({"method": ["l0"]}, r"method=\['l0'\]"),
    ({"density": 0}, r"density=0: .*\(0, 1\].* 0\.1"),
    ({"density": 0.0}, r"density=0\.0"),
    ({"density": 2}, r"density=2: .*\(0, 1\]"),
    ({"density": 1.0001}, r"density=1\.0001"),
    ({"density": -0.1}, r"density=-0\.1"),
    ({"density": "0.1"}, "density='0.1': must be a finite number"),
    ({"density": True}, "density=True: must be a finite number"),
    ({"density": None}, "density=None"),
    ({"density": float("nan")}, "density=nan: must be a finite number"),
    ({"scope": "layer"}, "scope='layer': movement allows 'local' or 'global'"),
    ({"method": "l0", "scope": "local"}, "scope='local': l0 allows 'global'"),
    ({"method": "soft_movement", "scope": "local"}, "scope='local': soft_movement allows 'global'"),
    ({"score_init": "one"}, "score_init='one': movement allows 'zero' or 'magnitude'"),
    ({"warmup": -1}, "warmup=-1"),
    ({"warmup": 1.0}, r"warmup=1\.0: .*float in \[0, 1\).*int"),
    ({"cooldown": -0.1}, r"cooldown=-0\.1"),
    ({"cooldown": float("inf")}, "cooldown=inf: must be a finite number"),
    ({"warmup": True}, "warmup=True"),
    ({"warmup": 0.5, "cooldown": 0.5}, r"warmup=0\.5 and cooldown=0\.5: .*less than 1"),
    ({"score_lr": 0}, "score_lr=0: must be greater than 0"),
    ({"score_lr": -1e-2}, r"score_lr=-0\.01"),
    ({"score_lr": "1e-2"}, "score_lr='1e-2'"),
    ({"method": "l0", "penalty": -1}, "penalty=-1"),
    (
        {"method": "platon", "penalty": 1.0},
        r"penalty=1\.0: platon has no penalty; only l0, movement, soft_movement",
    ),
    ({"method": "magnitude", "penalty": 1.0}, "magnitude has no penalty"),
    ({"method": "magnitude", "score_lr": 1e-2}, r"score_lr=0\.01: magnitude learns no scores"),
    ({"method": "magnitude", "score_init": "zero"}, "score_init='zero': magnitude learns no scores"),
    ({"method": "keep_zeros", "scope": "global"}, "scope='global': keep_zeros allows 'local'"),
    ({"method": "keep_zeros", "score_lr": 1e-2}, r"score_lr=0\.01: keep_zeros learns no scores"),
    ({"method": "keep_zeros", "score_init": "zero"}, "score_init='zero': keep_zeros learns no scores"),
    ({"method": "keep_zeros", "penalty": 1.0}, "keep_zeros has no penalty"),
    ({"targets": []}, r"targets=\[\]: must be a pattern or a list of patterns"),
    ({"targets": ["query", 3]}, r"targets=\['query', 3\]"),
    ({"targets": ""}, "targets=''"),
    ({"exclude": {"a": 1}}, "exclude={'a': 1}"),
    ({"freeze_embeddings": 1}, "freeze_embeddings=1: must be true or false"),
    ({"score_lr": 10**400}, "score_lr=.a whole number of 1329 bits.: must be a finite number"),
    ({"fix_masks": 1}, "fix_masks=1: must be true or false"),
    ({"method": "l0", "fix_masks": True}, "fix_masks=true: the gates of l0 go on closing"),
    ({"initial_density": 0.05}, r"initial_density=0\.05: must lie between density \(0\.1\) and 1"),
    ({"initial_density": 1.5}, r"initial_density=1\.5: must lie"),
    ({"initial_density": True}, "initial_density=True: must be a finite number"),
    ({"method": "keep_zeros", "initial_density": 0.5}, "method='keep_zeros' follows no schedule"),
    ({"method": "l0", "penalty": 9.0, "initial_density": 0.5}, "a fixed penalty follows no schedule"),
    ({"mask_interval": 0}, "mask_interval=0: must be at least 1"),
    ({"mask_interval": 1.5}, r"mask_interval=1\.5: must be a whole number"),
    ({"mask_interval": True}, "mask_interval=True"),
    ({"options": {"beta1": 0.5}}, r"options=\{'beta1': 0.5\}: movement has none; leave options out"),
    ({"method": "platon", "options": {"beta3": 1}}, "options of platon: unknown setting 'beta3'; did you"),
    ({"method": "platon", "options": [1]}, r"options of platon: expected a mapping of settings, got \[1\]"),
    ({"method": "platon", "options": {"beta1": 1}}, r"options.beta1=1: must be a number in \[0, 1\)"),
    ({"method": "platon", "options": {"window": 0}}, "options.window=0: must be a whole number of steps"),
    ({"method": "platon", "options": {"returns": "one"}}, "options.returns='one': allowed are zero, kept"),
    ({"method": "pins", "mask_interval": 5}, "mask_interval=5: must be a multiple of options.window=10"),
    ({"method": "fisher", "options": {"decay": 1}}, r"options.decay=1: must be a number in \[0, 1\)"),
    ({"method": "fisher", "options": {"damp": -1}}, "options.damp=-1: must be a number, 0 or more"),
    ({"method": "grain", "options": {"decay": 1}}, r"options.decay=1: must be a number in \[0, 1\)"),
    ({"method": "grain", "options": {"alpha": -1}}, "options.alpha=-1: must be a number, 0 or more"),
    ({"method": "admm", "structure": "row"}, "structure='row': admm prunes elements only"),
    ({"method": "admm", "options": {"strength": 0}}, "options.strength=0: must be a number greater than 0"),
    ({"method": "admm", "options": {"interval": 0}}, "options.interval=0: must be a number of steps"),
    ({"method": "admm", "options": {"objective_aware": 1}}, "options.objective_aware=1: must be true or"),
    ({"method": "st3", "score_lr": 1e-2}, r"score_lr=0\.01: st3 learns no scores"),
    ({"method": "st3", "penalty": 1.0}, "st3 has no penalty"),
    ({"method": "st3", "options": {"rescale": 1}}, "options.rescale=1: must be true or false"),
    ({"method": "pdp", "score_init": "zero"}, "score_init='zero': pdp learns no scores"),
    ({"method": "pdp", "penalty": 1.0}, "pdp has no penalty"),
    (
        {"method": "pdp", "options": {"temperature": 0}},
        r"options.temperature=0: must be a number in \(0, 10\]",
    ),
    ({"method": "pdp", "structure": "row"}, "structure='row': pdp prunes elements only"),
    ({"method": "powerprop", "options": {"power": 0.5}}, r"options.power=0\.5: must be a number in \[1, 3\]"),
    ({"method": "powerprop", "options": {"power": 3.1}}, r"options.power=3\.1: must be"),
    ({"method": "proximal", "options": {"reweight": 1}}, "options.reweight=1: must be true or false"),
    ({"method": "proximal", "options": {"epsilon": 0}}, "options.epsilon=0: must be a number greater than 0"),
    (
        {"method": "magnitude", "options": {"weight_gradient": "none"}},
        "options.weight_gradient='none': allowed",
    ),
    ({"method": "magnitude", "options": {"flow": "cube"}}, "options.flow='cube': allowed are power, linear"),
    (
        {"method": "magnitude", "options": {"weight_gradient": "dense", "flow": "linear"}},
        "options.flow='linear': says how weight_gradient='decayed' falls, and weight_gradient is 'dense'",
    ),
    ({"method": "magnitude", "options": {"pruned_decay": 1}}, r"options.pruned_decay=1: must be a"),
    ({"method": "platon", "score_lr": 1e-2}, "platon learns no scores"),
    ({"method": "platon", "scope": "local"}, "scope='local': platon allows 'global'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[str(settings) for settings, _ in BAD])
def test_what_cannot_work_is_one_clear_line(settings, message):
    with pytest.raises(FinepruneError, match=message) as raised:
        PruningConfig(**settings)
    assert "\n" not in str(raised.value)


def test_numbers_and_patterns_are_normalized():
    config = PruningConfig("l0", density=1, penalty=2, score_lr=1, targets="query", exclude=["a", "b"])
    assert [type(value) for value in (config.density, config.penalty, config.score_lr)] == [float] * 3
    assert (config.targets, config.exclude) == (("query",), ("a", "b"))
    assert isinstance(PruningConfig(warmup=3).warmup, int)  # an int is steps, a float a share


FULL = PruningConfig(
    "soft_movement",
    density=0.03,
    scope="global",
    warmup=7,
    cooldown=0.25,
    score_lr=0.01,
    score_optimizer="sgd",
    score_init="zero",
    penalty=1.5,
    targets=("query", "key"),
    exclude=("layer.0.*",),
    freeze_embeddings=False,
    mask_interval=5,
)


def test_options_become_those_of_the_method():
    config = PruningConfig("platon", options={"beta1": 0.5})
    assert (config.options.beta1, config.options.beta2, config.mask_interval) == (0.5, 0.95, 10)
    assert PruningConfig("platon").options is None  # the defaults, without importing torch
    assert config.to_dict()["options"] == {"beta1": 0.5, "beta2": 0.95, "window": 10, "returns": "zero"}


@pytest.mark.parametrize("config", [PruningConfig(), FULL, PruningConfig("pins", options={"window": 5})])
def test_json_both_ways(config, tmp_path):
    path = tmp_path / "pruning.json"
    config.save(path)
    assert PruningConfig.load(path) == config
    assert type(PruningConfig.load(path).warmup) is type(config.warmup)
    assert json.loads(path.read_text()) == config.to_dict()
    assert PruningConfig.from_dict(config.to_dict()) == config
    assert hash(PruningConfig.load(path)) == hash(config)


def test_an_unknown_setting_names_the_near_one():
    with pytest.raises(FinepruneError, match="unknown setting 'densty'; did you mean density"):
        PruningConfig.from_dict({"densty": 0.1})
    with pytest.raises(FinepruneError, match=r"expected a mapping of settings, got \[\]"):
        PruningConfig.from_dict([])


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", None])
def test_a_broken_file(content, tmp_path):
    path = tmp_path / "pruning.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FinepruneError, match=r"pruning\.json: not a pruning config"):
        PruningConfig.load(path)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "pruning.json"
    path.write_text("[1, 2]")
    with pytest.raises(FinepruneError, match="expected a mapping"):
        PruningConfig.load(path)
    path.write_text('{"density": 3}')
    with pytest.raises(FinepruneError, match="density=3"):
        PruningConfig.load(path)
