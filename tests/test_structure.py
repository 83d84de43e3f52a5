"""The setting `structure`."""

from dataclasses import replace

import pytest

from fineprune import FinepruneError, PruningConfig
from fineprune.structure import Level, Part, levels_of, parts_of, plain, shrinks, units_of

HEADS = {"attention": "head", "feed_forward": "neuron"}
VALUES = {"attention": "value_dim", "feed_forward": "neuron"}
BOTH = {"attention": ["query_dim", "value_dim"], "feed_forward": "neuron"}
SHARES = {
    "attention": {"unit": "head", "density": 0.4},
    "feed_forward": {"unit": "neuron", "density": 0.15},
}


@pytest.mark.parametrize(
    ("structure", "parts"),
    [
        ("element", {"all": Part("element")}),
        ([4, 1], {"all": Part((4, 1))}),
        ({"feed_forward": "neuron"}, {"feed_forward": Part("neuron")}),
        (
            {"feed_forward": "neuron", "attention": [32, 32]},
            {"attention": Part((32, 32)), "feed_forward": Part("neuron")},
        ),
        (SHARES, {"attention": Part("head", 0.4), "feed_forward": Part("neuron", 0.15)}),
        (VALUES, {"attention": Part("value_dim"), "feed_forward": Part("neuron")}),
        (BOTH, {"attention": Part(("query_dim", "value_dim")), "feed_forward": Part("neuron")}),
        ({"attention": ["value_dim", "query_dim"]}, {"attention": Part(("query_dim", "value_dim"))}),
        (
            {"attention": {"unit": ["query_dim", "value_dim"], "density": 0.1}},
            {"attention": Part(("query_dim", "value_dim"), 0.1)},
        ),
    ],
)
def test_what_it_means(structure, parts):
    assert parts_of(structure) == parts
    assert parts_of(plain(levels_of(structure))) == parts


def test_two_levels():
    outer, inner = levels_of([HEADS | {"density": 0.5}, "element"])
    assert outer == Level({"attention": Part("head"), "feed_forward": Part("neuron")}, 0.5)
    assert inner == Level({"all": Part("element")})
    assert parts_of([SHARES, "element"]) == inner.parts
    assert levels_of([SHARES, "element"])[0] == Level(parts_of(SHARES))
    assert units_of([SHARES, "element"]) == ["head", "neuron", "element"]
    assert shrinks([SHARES, "element"])


def test_an_outer_level_without_a_density_takes_the_same_share_as_the_inner_one(tmp_path):
    config = PruningConfig(method="pins", structure=[HEADS, "element"], density=0.25)
    assert [level.density for level in config.levels] == [0.5, None]  # 0.5 of 0.5 is 0.25
    assert replace(config, density=0.09).levels[0].density == pytest.approx(0.3)
    config.save(tmp_path / "config.json")
    assert PruningConfig.load(tmp_path / "config.json") == config
    assert [level.derived for level in config.levels] == [True, False]
    given = PruningConfig(structure=[HEADS | {"density": 0.75}, "element"], density=0.25)
    assert given.levels[0].density == 0.75
    assert PruningConfig(structure=[SHARES, "element"], density=0.1).levels[0] == Level(parts_of(SHARES))
    assert PruningConfig(structure=HEADS, density=0.25).levels == levels_of(HEADS)


def test_units_inside_of_heads():
    assert units_of(BOTH) == ["query_dim", "value_dim", "neuron"]
    assert shrinks({"attention": "value_dim"})
    assert not shrinks({"attention": "query_dim"})  # a head without queries is no empty head


def test_a_config_saves_and_loads_it(tmp_path):
    levels = ([HEADS | {"density": 0.5}, "element"], [SHARES, "element"])
    for structure in (
        "row",
        (4, 1),
        HEADS,
        SHARES,
        VALUES,
        BOTH,
        {"attention": (32, 32), "feed_forward": "neuron"},
        *levels,
    ):
        config = PruningConfig("magnitude", structure=structure)
        config.save(tmp_path / "pruning.json")
        assert PruningConfig.load(tmp_path / "pruning.json") == config
    assert PruningConfig(structure=[4, 1]).structure == (4, 1)
    assert PruningConfig.from_dict({"method": "movement"}).structure == "element"  # older files


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "head"}, "structure='head': is a unit of one part; write {attention: head}"),
        ({"structure": "rows"}, r"structure='rows': did you mean row\? allowed are element, row, column"),
        ({"structure": "heads"}, r"structure='heads': did you mean head\? allowed are element"),
        ({"structure": [4, "1"]}, r"structure=\[4, '1'\]: a block has two sizes, whole numbers"),
        (
            {"structure": ["head"]},
            r"structure=\['head'\]: is of one part; write {attention: head}; levels are two",
        ),
        (
            {"structure": ["query_dim", "value_dim"]},
            r"is of one part; write {attention: \[query_dim, value_dim\]}; levels are two",
        ),
        (
            {"structure": {"attention": "head", "density": 0.5}},
            "unknown setting 'density': of one level it is",
        ),
        ({"structure": [4, 1, 1]}, r"structure=\[4, 1, 1\]: a block has two sizes"),
        ({"structure": [4, 0]}, "a block has two sizes"),
        ({"structure": [SHARES | {"density": 0.5}, "element"]}, "its parts, not both"),
        ({"structure": [HEADS | {"density": 2}, "element"]}, r"structure\[0\].density=2: the share of the"),
        ({"structure": ["head", "element"]}, r"structure\[0\]='head': the outer level names parts and a"),
        (
            {"structure": [{"attention": "row", "density": 0.5}, "element"]},
            r"\[0\].attention='row'",
        ),
        (
            {"structure": [VALUES | {"density": 0.5}, "element"]},
            r"attention='value_dim': the outer level is of units that can be removed: head, attention$",
        ),
        (
            {"structure": {"attention": ["head", "value_dim"]}},
            r"structure.attention=\['head', 'value_dim'\]: the units that go together are",
        ),
        (
            {"structure": {"feed_forward": ["query_dim", "value_dim"]}},
            "structure.feed_forward=.*: a block has two sizes",
        ),
        ({"structure": "value_dim"}, "is a unit of one part; write {attention: value_dim}"),
        (
            {"structure": VALUES, "budget": "flops", "scope": "global"},
            "budget='flops': counts as the weights do where matrices are ranked one by one, or no heads are",
        ),
        (
            {"structure": VALUES, "budget": "latency", "latency_table": "t.json", "scope": "global"},
            "a table has times of heads and neurons",
        ),
        ({"structure": [HEADS | {"density": 0.5}, [4, 1]]}, "levels are two, heads and neurons first, then"),
        (
            {"structure": [HEADS | {"density": 0.5}, "element"], "budget": "flops", "scope": "global"},
            "budget='flops': of two levels both densities are shares of the weights",
        ),
        (
            {"method": "l0", "structure": [HEADS | {"density": 0.5}, "element"], "penalty": 5.0},
            "a fixed penalty decides what remains; leave the densities",
        ),
        ({"structure": SHARES, "density": 0.3}, "density=0.3: the parts of the structure have densities of"),
        ({"structure": "hidden_size"}, "structure='hidden_size': is no unit: a norm takes mean and variance"),
        ({"structure": {}}, "name attention, feed_forward or both"),
        ({"structure": {"ffn": "neuron"}}, "structure: unknown setting 'ffn'"),
        (
            {"structure": {"attention": "neuron"}},
            "structure.attention='neuron': is a unit of feed_forward; allowed are element, row, ",
        ),
        ({"structure": {"attention": {"unit": "head", "share": 1}}}, "structure.attention: unknown setting"),
        ({"structure": {"attention": {"density": 0.5}}}, "structure.attention.unit=None: .*allowed are"),
        (
            {"structure": {"attention": {"unit": "head", "density": 2}}},
            r"structure.attention.density=2: .* \(0, 1\]",
        ),
        (
            {"structure": {"attention": {"unit": "head", "density": 0.5}, "feed_forward": "neuron"}},
            "give both parts a density, or neither",
        ),
        (
            {"method": "keep_zeros", "structure": "row"},
            "structure='row': method='keep_zeros' holds the zeros",
        ),
        ({"budget": "flops", "scope": "global"}, "budget='flops': counts as the weights do where"),
        (
            {"method": "movement", "structure": HEADS, "budget": "flops", "scope": "type"},
            "budget='flops': counts as the weights",
        ),
        (
            {"method": "movement", "structure": [HEADS | {"density": 0.5}, "element"], "scope": "type"},
            "scope='type': shares of each kind of matrix are not known of two levels",
        ),
        (
            {"method": "soft_movement", "scope": "type", "penalty": 5.0},
            "scope='type': a fixed penalty decides what remains",
        ),
        (
            {"method": "magnitude", "structure": HEADS, "budget": "flops"},
            "budget='flops': counts as the weights",
        ),
        (
            {"method": "l0", "structure": SHARES, "penalty": 5.0},
            "a fixed penalty decides what remains; leave the densities",
        ),
        ({"structure": None}, "structure=None: allowed are element"),
        ({"budget": "joules"}, "budget='joules': .*allowed are parameters, flops, latency"),
        ({"latency_table": "t.json"}, "latency_table='t.json': only budget='latency' reads it"),
        (
            {"structure": HEADS, "budget": "latency", "scope": "global"},
            "latency_table=None: budget='latency' needs the path of a file of times",
        ),
        (
            {"budget": "latency", "latency_table": "t.json", "scope": "global"},
            "a table has times of heads and neurons, and structure='element' has other units",
        ),
        (
            {"structure": HEADS, "budget": "latency", "latency_table": "t.json"},
            "budget='latency': weighs heads and neurons of all layers",
        ),
        (
            {"structure": SHARES, "budget": "latency", "latency_table": "t.json", "scope": "global"},
            "scope='global', and no density of a part",
        ),
        ({"budget_length": 0}, "budget_length=0: must be a whole number"),
        ({"round_to": 1.5}, "round_to=1.5: must be a whole number"),
        ({"round_to": 8}, "round_to=8: rounds neurons, and the structure has none"),
        (
            {"method": "l0", "structure": HEADS, "budget": "flops", "penalty": 5.0},
            "budget='flops': a fixed penalty decides what remains; leave budget or penalty out",
        ),
        (
            {"method": "soft_movement", "structure": HEADS, "round_to": 8, "penalty": 5.0},
            "round_to=8: a fixed penalty decides what remains",
        ),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(FinepruneError, match=message):
        PruningConfig(**settings)


@pytest.mark.parametrize(
    ("structure", "does"),
    [
        ("element", False),
        ((4, 1), False),
        ({"attention": (4, 4), "feed_forward": "neuron"}, True),
        ({"attention": "head"}, True),
    ],
)
def test_which_structures_leave_a_smaller_model(structure, does):
    assert shrinks(structure) is does
