"""The docstring data set: literal cleaning cases, then what a set must hold, then the real one."""

import json
from pathlib import Path

import pytest

from fineprune.errors import FinepruneError
from fineprune.tasks import docstring_pairs
from fineprune.tasks.docstring_pairs import Pair, build, write_jsonl

NOUNS = ["apple", "river", "window", "garden", "ladder", "candle"]
NOUNS += ["basket", "mirror", "hammer", "pocket", "bridge", "tunnel"]


def write_package(root: Path, files: int, functions: int) -> Path:
    """A package in which each sentence names its own function and file."""
    root.mkdir()
    for index in range(files):
        source = "".join(
            f"def {root.name}_{index}_{noun}():\n"
            f'    """Return the {noun} of {root.name} file number {index}. More words."""\n\n\n'
            for noun in NOUNS[:functions]
        )
        (root / f"module{index}.py").write_text(source)
    return root


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    return [write_package(tmp_path / "one", 10, 7), write_package(tmp_path / "two", 6, 12)]


def file_of(name: str) -> str:
    return " ".join(name.split()[:2])


def own_sentence(name: str) -> str:
    package, index, noun = name.split()
    return f"Return the {noun} of {package} file number {index}."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("snake_case_name", "snake case name"),
        ("camelCaseName", "camel case name"),
        ("parseHTTPHeader", "parse http header"),
        ("_private", "private"),
        ("__mangled_", "mangled"),
        ("visit_FunctionDef", "visit function def"),
        ("conv2d", "conv2d"),
        ("Conv2D", "conv2d"),
        ("log10", "log10"),
        ("__init__", None),
        ("x", None),
        ("_x", None),
        ("_", None),
        ("größe", None),
    ],
)
def test_a_name_is_split_into_words(name: str, words: str | None) -> None:
    assert docstring_pairs._split_name(name) == words


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum of all. It is fast.", "Return the sum of all."),
        ("Return the sum of all", "Return the sum of all"),
        ("\n    Return the sum\n    of   all.\n\n    Another paragraph.\n", "Return the sum of all."),
        ("Use another number base, e.g. Ten or Two. Not more.", "Use another number base, e.g. Ten or Two."),
        ("Fit the model to X. Then predict.", "Fit the model to X."),
        ("Read torch.nn.Linear from the disk.", "Read torch.nn.Linear from the disk."),
        ("Make a :class:`~torch.nn.Linear` from ``weights``.", "Make a Linear from weights."),
        ("Make a :ref:`good layer <layers>` of `size`.", "Make a good layer of size."),
        (
            "Make a [`~models.Bert`] from its [own config](https://a.org/b).",
            "Make a Bert from its own config.",
        ),
        ("Return **all** the *good* layers [1]_.", "Return all the good layers."),
        ("Read `the manual <https://a.org>`_ to the end.", "Read the manual to the end."),
        (
            "add(input, other=None, *, out=(1, 2)) -> Tensor\n\nAdds other to the input.",
            "Adds other to the input.",
        ),
        ("Adds other to the input.\nArgs:\n    other: what to add", "Adds other to the input."),
        ("Adds other to the input\n>>> add(1, 2)\n3", "Adds other to the input"),
        ("Too few words.", None),
        ("word " * 41, None),
        ("", None),
        ("   \n  ", None),
        ("Explanation of it all\n---------------------\n\nIt works.", None),
        ("See :func:`other` for the documentation.", None),
        ("Deprecated, use the other function.", None),
        ("Return :math:`\\frac{a}{b}` of the input.", None),
        ("Return the größe of all things.", None),
        ("Return the %(name)s of the thing.", None),
        ("Compute the following two things:\n\n- one", None),
        ("input_ids (`torch.LongTensor`, *optional*):\n    Indices of the input tokens.", None),
        ("1 + 2 + 3 + 4 = 10", None),
        ("Read the pages at https://a.org every day.", None),
    ],
)
def test_the_first_sentence_is_plain_english(docstring: str, sentence: str | None) -> None:
    assert docstring_pairs._first_sentence(docstring) == sentence


def test_a_true_pair_has_the_functions_sentence_and_a_false_one_anothers_of_its_file(
    roots: list[Path],
) -> None:
    train, validation = docstring_pairs._build(roots, 80, 20, seed=3)
    for pair in train + validation:
        assert (pair.sentence == own_sentence(pair.name)) == pair.describes
        package, index = pair.name.split()[:2]
        assert pair.sentence.endswith(f" of {package} file number {index}.")


def test_each_set_is_as_long_as_asked_and_half_true(roots: list[Path]) -> None:
    train, validation = docstring_pairs._build(roots, 80, 21, seed=0)
    assert [len(train), len(validation)] == [80, 21]
    assert [sum(pair.describes for pair in pairs) for pairs in (train, validation)] == [40, 11]
    assert len({pair.describes for pair in train[:20]}) == 2, "the rows are in a mixed order"


def test_no_file_no_sentence_is_in_both_sets_and_no_row_twice(roots: list[Path]) -> None:
    train, validation = docstring_pairs._build(roots, 80, 20, seed=0)
    assert not {file_of(pair.name) for pair in train} & {file_of(pair.name) for pair in validation}
    assert not {pair.sentence for pair in train} & {pair.sentence for pair in validation}
    assert len(set(train + validation)) == 100


def test_a_sentence_of_another_file_that_is_the_same_stays_in_one_set(tmp_path: Path) -> None:
    same = 'def {0}():\n    """Return the very same thing."""\n\n\n'
    same += 'def {0}_two():\n    """Return thing {0} of all."""\n'
    for index in range(8):
        (tmp_path / f"module{index}.py").write_text(same.format(NOUNS[index]))
    train, validation = docstring_pairs._build([tmp_path], 4, 4, seed=0)
    assert not {pair.sentence for pair in train} & {pair.sentence for pair in validation}
    true = [pair.sentence for pair in train + validation if pair.describes]
    assert true.count("Return the very same thing.") <= docstring_pairs.MOST_REPEATS


def test_functions_of_one_name_are_never_swapped(tmp_path: Path) -> None:
    methods = [f'class C{n}:\n    def run(self):\n        """Run the engine of {n}."""\n' for n in NOUNS]
    other = 'def stop():\n    """Stop all the engines now."""\n'
    for index in range(4):
        (tmp_path / f"module{index}.py").write_text("\n".join([*methods, other]))
    train, _ = docstring_pairs._build([tmp_path], 4, 0, seed=0)
    swapped = [pair for pair in train if not pair.describes]
    assert swapped
    assert all(pair.sentence.startswith("Stop") == (pair.name == "run") for pair in swapped)


def test_methods_nested_and_async_functions_are_found_in_order(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import sys\n"
        "class A:\n    class B:\n        def first_one(self):\n            '''Do the first thing now.'''\n"
        "if sys:\n    async def second_one():\n        r'''Do the second thing now.'''\n"
        "        def third_one():\n            '''Do the third thing now.'''\n"
        "def undocumented(): ...\n"
        "def fourth_one():\n    '''Do the fourth thing now.'''\n"
    )
    assert [name for name, _ in docstring_pairs._functions(path)] == [
        "first one",
        "second one",
        "third one",
        "fourth one",
    ]


def test_the_same_seed_gives_the_same_sets_and_another_seed_others(roots: list[Path]) -> None:
    assert docstring_pairs._build(roots, 60, 20, seed=1) == docstring_pairs._build(roots, 60, 20, seed=1)
    assert docstring_pairs._build(roots, 60, 20, seed=1) != docstring_pairs._build(roots, 60, 20, seed=2)


def test_the_validation_set_does_not_depend_on_the_training_size(roots: list[Path]) -> None:
    assert docstring_pairs._build(roots, 60, 20, seed=1)[1] == docstring_pairs._build(roots, 2, 20, seed=1)[1]


def test_too_few_pairs_are_an_error_that_counts_them(roots: list[Path]) -> None:
    with pytest.raises(
        FinepruneError, match=r"hold 1[34]\d pairs, too few for 1000 \+ 20: ask for fewer"
    ) as caught:
        docstring_pairs._build(roots, 1000, 20, seed=0)
    assert "\n" not in str(caught.value)


def test_a_negative_size_is_an_error(roots: list[Path]) -> None:
    with pytest.raises(FinepruneError, match="0 or more, not 5 and -1"):
        docstring_pairs._build(roots, 5, -1, seed=0)


def test_files_that_cannot_be_read_or_are_not_the_authors_own_are_skipped(roots: list[Path]) -> None:
    wanted = docstring_pairs._build(roots, 80, 20, seed=0)
    function = (
        'def bad():\n    """Do the bad thing now."""\n\n\ndef worse():\n    """Do the worse thing now."""\n'
    )
    for name in (
        "tests/module.py",
        "_vendor/module.py",
        "test_module.py",
        "some-data/module.py",
        "notes.txt",
    ):
        (roots[0] / name).parent.mkdir(exist_ok=True)
        (roots[0] / name).write_text(function)
    assert docstring_pairs._build(roots, 80, 20, seed=0) == wanted

    for name, content in {
        "broken.py": function.encode() + b"def (",
        "latin.py": function.encode() + b"# gr\xf6\xdfe\n",
        "null.py": function.encode() + b"\0",
        "generated.py": b"# This file was automatically generated from modular.py\n" + function.encode(),
    }.items():
        (roots[0] / name).write_bytes(content)
        assert list(docstring_pairs._functions(roots[0] / name)) == []
    train, validation = docstring_pairs._build(roots, 80, 20, seed=0)
    assert not any("bad" in pair.name for pair in train + validation)


def test_a_file_python_warns_about_is_read_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('PATTERN = "\\d"\nSAME = 1 is 1\ndef good_one():\n    """Do the \\good thing now."""\n')
    assert list(docstring_pairs._functions(path)) == []  # the backslash is no English, but nothing was raised
    path.write_text('PATTERN = "\\d"\nSAME = 1 is 1\ndef good_one():\n    """Do the good thing now."""\n')
    assert list(docstring_pairs._functions(path)) == [("good one", "Do the good thing now.")]


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_jsonl([Pair("get it", "Return all of it.", True), Pair("put it", 'Say "no".', False)], path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"name": "get it", "sentence": "Return all of it.", "label": "describes"},
        {"name": "put it", "sentence": 'Say "no".', "label": "other"},
    ]
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_jsonl([Pair("a b", "c", True), None], path)  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_real_set_is_plausible() -> None:
    train, validation = build(400, 100)
    assert [len(train), len(validation)] == [400, 100]
    assert [sum(pair.describes for pair in pairs) for pairs in (train, validation)] == [200, 50]
    assert not {pair.sentence for pair in train} & {pair.sentence for pair in validation}
    for name, sentence, _ in train + validation:
        assert name == name.lower()
        assert name.replace(" ", "").replace("_", "").isalnum()
        assert 4 <= len(sentence.split()) <= 40
        assert sentence.isascii()
        assert sentence[0].isalpha()
        assert "`" not in sentence
    shared = {
        describes: sum(
            any(word in sentence.lower() for word in name.split() if len(word) > 2)
            for name, sentence, own in train
            if own is describes
        )
        for describes in (True, False)
    }
    assert shared[True] > shared[False] + 30, (
        "a name has words of its own sentence, and the sets have something to learn"
    )
    assert max(len(name) for name, _, _ in train) < 100
