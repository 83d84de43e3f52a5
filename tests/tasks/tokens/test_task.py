"""Token classification: settings, files and labels on first tokens."""

import json
from types import SimpleNamespace

import pytest

from fineprune.errors import FinepruneError, FinepruneWarning
from fineprune.tasks.kinds import task_config
from fineprune.tasks.tokens import tags
from fineprune.tasks.tokens.task import TokenClassificationConfig

CONLL = "-DOCSTART- -X- O\n\ngood NN B-PER\nfilm NN I-PER\nvery RB O\n\nbad JJ B-LOC\n"
DEV = "film NN B-PER\n"


def config(**values) -> TokenClassificationConfig:
    return TokenClassificationConfig.from_dict(values)


@pytest.fixture
def load(write):
    """`load(train, dev, suffix, **settings)`: the data of two files."""

    def make(train: str, dev: str = DEV, suffix: str = "txt", **settings):
        paths = {"train": write(f"train.{suffix}", train), "validation": write(f"dev.{suffix}", dev)}
        return config(**paths, **settings).load()

    return make


def jsonl(*rows: tuple[list, list], tags: str = "ner_tags") -> str:
    return "".join(json.dumps({"tokens": words, tags: cells}) + "\n" for words, cells in rows)


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_file_of_another_form_is_found_before_it_is_read(write, suffix):
    place = write(f"dev.{suffix}", "text,label\ngood film,B-PER\n")
    with pytest.raises(FinepruneError, match=rf"a file named \*\.{suffix} is neither CoNLL nor a table"):
        config(validation=place).check_files()


def test_columns_that_a_form_cannot_have_are_found_before_it_is_read(write):
    place = write("dev.txt", DEV)
    config(validation=place, tags=2).check_files()
    with pytest.raises(FinepruneError, match=r"tags is 'ner', but for .* it must be the number of a column"):
        config(validation=place, tags="ner").check_files()


def test_conll_last_column_and_documents(load):
    data = load(CONLL)
    assert data.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert data.train.words == [["good", "film", "very"], ["bad"]]
    assert data.train.tags == [[1, 2, 3], [0]]
    assert data.validation.tags == [[1]]
    assert (data.metric, data.sizes()) == ("f1", {"train": 2, "validation": 1})
    assert data.head()["id2label"] == {0: "B-LOC", 1: "B-PER", 2: "I-PER", 3: "O"}


def test_other_columns_are_parts_of_speech_scored_by_accuracy(load):
    data = load(CONLL, words=0, tags=1)
    assert (data.labels, data.metric) == (("JJ", "NN", "RB"), "accuracy")
    with pytest.raises(FinepruneError, match="'f1' is of entities, but the tag 'JJ' is neither O"):
        load(CONLL, tags=1, metric="f1")


def test_tabs_keep_spaces_and_no_break_spaces_stay(load):
    data = load("New York\tB-LOC\nis\tO\n\n\n", "10\u00a0km B-LOC\r\nis O\r\n")
    assert data.train.words == [["New York", "is"]]
    assert data.validation.words == [["10\u00a0km", "is"]]


U = (
    "# sent_id = 1\n# text = del rio = #\n1-2\tdel\t{0}\n1\tde\t_\tADP\t{1}\n2\tel\t_\tDET\t{1}\n"
    "2.1\tx\t{0}\n3\t#\t_\tSYM\t{1}\n"
)


@pytest.mark.parametrize(
    ("text", "settings", "words", "labels"),
    [
        # MultiCoNER: a comment has as many fields as a word.
        (
            "# id 1 domain=en\nthe _ _ O\n# _ _ B-X\n\n# id 2 domain=en\n# id 3\ndog _ _ B-X\n",
            {},
            [["the", "#"], ["dog"]],
            ("B-X", "O"),
        ),
        # GermEval: a comment has fewer.
        (
            "#\thttp://a.de/b [2009-10-17]\n1\tAm\tO\tO\n2\tRhein\tB-X\tO\n",
            {"words": 1, "tags": 2},
            [["Am", "Rhein"]],
            ("B-X", "O"),
        ),
        ("# text = a\n# b\na\tO\nb\tB-X\n\n\n# end\n", {}, [["a", "b"]], ("B-X", "O")),
        # A sentence that begins with the word #, or with a tag of Twitter.
        (
            "# O\n1 B-X\nb O\n\n#good O\n\n# B-X\n# O\n",
            {},
            [["#", "1", "b"], ["#good"], ["#", "#"]],
            ("B-X", "O"),
        ),
        ("# O\n# B-X\n", {}, [["#", "#"]], ("B-X", "O")),
        ("-DOCSTART- -X-\n\n# id=1\na O\nb B-X\n", {}, [["a", "b"]], ("B-X", "O")),
    ],
)
def test_comments_are_no_words(load, text, settings, words, labels):
    data = load(text, text, **settings)
    assert (data.train.words, data.labels) == (words, labels)


@pytest.mark.parametrize(("suffix", "settings"), [("conllu", {}), ("txt", {"words": 1, "tags": 3})])
def test_conllu_has_neither_ranges_nor_empty_nodes(load, suffix, settings):
    text = U.format("\t".join("_" * 8), "\t".join("_" * 6))
    data = load(text, text, suffix, **settings)
    assert (data.train.words, data.labels) == ([["de", "el", "#"]], ("ADP", "DET", "SYM"))
    with pytest.raises(FinepruneError, match=r"line 7: tag 'SYM' of '#' is not known"):
        load(text.replace("SYM", "DET"), text, suffix, **settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("good O\n\n# SYM\nbad O\n", r"train\.txt, line 3: '#' is read as a word with the tag 'SYM'"),
        ("1 O\n2 B-X\n", r"train\.txt: column 0, read as the words, holds only numbers; .* `words`"),
    ],
)
def test_lines_that_are_probably_not_words(load, text, said):
    with pytest.warns(FinepruneWarning, match=said):
        load(text, "bad O\n")


def test_a_hashtag_without_a_tag_is_no_comment(load):
    with pytest.raises(FinepruneError, match=r"train\.txt, line 3: 1 fields '#good'"):
        load("a O\n\n#good\nb B-X\n")


def test_tables_with_text_and_with_numbers(load):
    rows = (["good", "film"], ["B-X", "O"]), ([], []), (["bad"], ["I-X"])
    data = load(jsonl(*rows), jsonl((["a"], ["O"])), "jsonl")
    assert (data.labels, data.train.tags) == (("B-X", "I-X", "O"), [[0, 2], [1]])
    numbers = jsonl((["good", "film"], [2, 0]), tags="tags"), jsonl((["a"], [2]), tags="tags")
    data = load(*numbers, "jsonl")
    assert (data.labels, data.metric) == (("0", "2"), "accuracy")
    assert (data.train.tags, data.validation.tags) == ([[1, 0]], [[1]])
    data = load(*numbers, "jsonl", labels=["O", "B-X", "I-X"])
    assert (data.metric, data.train.tags, data.validation.tags) == ("f1", [[2, 0]], [[2]])


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"words": [["good", "bad"]], "pos": [["X", "Y"]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    data = config(train=path, validation=path, words="words", tags="pos").load()
    assert (data.labels, data.train.words) == (("X", "Y"), [["good", "bad"]])


def test_the_hub_names_its_tags(monkeypatch):
    import datasets

    from fineprune.tasks.tokens import files

    names = ["O", "B-PER", "I-PER"]
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
        }
    )
    table = datasets.Dataset.from_dict(
        {"tokens": [["good", "film"]], "ner_tags": [[1, 0]]}, features=features
    )
    monkeypatch.setattr(files, "open_hub", lambda name, subset, split: (f"{name}[{split}]", table))
    data = config(hub="some/ner").load()
    assert (data.labels, data.train.tags, data.metric) == (tuple(names), [[1, 0]], "f1")
    settings = SimpleNamespace(num_labels=3, id2label=dict(enumerate(names[::-1])))
    trained = SimpleNamespace(config=settings)
    again = config(hub="some/ner").load(need_train=False, model=trained)
    assert (again.train, again.labels, again.validation.tags) == (None, tuple(names[::-1]), [[1, 2]])
    with pytest.raises(
        FinepruneError, match=r"labels is \['O', 'B-X'\] but the model has 'I-PER', 'B-PER', 'O'"
    ):
        config(hub="some/ner", labels=["O", "B-X"]).load(need_train=False, model=trained)
    with pytest.raises(
        FinepruneError, match=r"some/ner\[train\]: no column 'pos'; .* it has 'tokens', 'ner_tags'"
    ):
        config(hub="some/ner", tags="pos").load()


# -- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "dev", "settings", "parts"),
    [
        ("", DEV, {}, ["train.txt: the file is empty"]),
        ("-DOCSTART- O\n\n", DEV, {}, ["train.txt: has no sentences"]),
        ("a O\nb X O\n", DEV, {}, ["train.txt, line 2: 3 fields 'b', 'X', 'O', the first line has 2"]),
        ("a O\nb\n", DEV, {}, ["train.txt, line 2: 1 fields"]),
        ("a\nb\n", DEV, {}, ["train.txt, line 1: 'a' has no tag"]),
        ("a\tO\nb\t\t\n", DEV, {}, ["train.txt, line 2"]),
        ("a O\nb O\n", "a O\n", {}, ["train.txt: every word has the same tag"]),
        (CONLL, DEV, {"tags": 3}, ["train.txt, line 3: tags is column 3, the line has 3"]),
        (CONLL, DEV, {"tags": "ner"}, ["tags is 'ner'", "the number of a column"]),
        (CONLL, "\na x O\nb x I-LOC\n", {}, ["dev.txt, line 3: tag 'I-LOC' of 'b' is not known", "labels"]),
        (CONLL, DEV, {"labels": ["O", "B-PER"]}, ["train.txt, line 4: tag 'I-PER'"]),
    ],
)
def test_wrong_files_are_one_line(load, train, dev, settings, parts):
    with pytest.raises(FinepruneError) as error:
        load(train, dev, **settings)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ((["a", "b"], ["O"]), "train.jsonl, row 2: 2 words but 1 tags; each word needs one"),
        (("a b", ["O"]), "row 2: the words are 'a b', expected a list of texts"),
        ((["a"], [None]), "row 2: 'a' has no tag (None)"),
        ((["a"], [3]), "some tags are numbers (3), others text ('B-X')"),
    ],
)
def test_wrong_rows_are_one_line(load, row, part):
    with pytest.raises(FinepruneError) as error:
        load(jsonl((["x"], ["B-X"]), row), jsonl((["x"], ["B-X"])), "jsonl")
    assert part in str(error.value)


def test_bytes_that_are_not_utf8_and_the_wrong_column(tmp_path, load, monkeypatch):
    (tmp_path / "bad.txt").write_bytes(b"good O\nb\xe4d O\n")
    with pytest.raises(FinepruneError, match=r"bad.txt, line 2: byte 0xe4 is not UTF-8"):
        config(train=str(tmp_path / "bad.txt"), validation="x").load()
    monkeypatch.setattr(tags, "MOST_TAGS", 2)
    with pytest.raises(FinepruneError, match=r"line 1: by here more than 2 different tags, such as 'O', 'A'"):
        load("a O\nb A\nc B\n")
    assert load("a O\nb A\nc B\n", "a O\n", labels=["O", "A", "B"]).labels == ("O", "A", "B")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({}, "no data"),
        (
            {"train": "a", "validation": "b", "metric": "f2"},
            "task.metric='f2': did you mean f1? allowed are f1",
        ),
        ({"train": "a", "validation": "b", "labels": ["O"]}, "labels is ['O'], expected two or more"),
        ({"train": "a", "validation": "b", "tags": True}, "tags is True"),
        ({"train": "a", "validation": "b", "tag": 1}, "unknown setting 'tag'; did you mean tags"),
    ],
)
def test_wrong_settings(values, part):
    with pytest.raises(FinepruneError) as error:
        task_config({"kind": "token_classification", **values})
    assert part in str(error.value)


def test_a_config_comes_back_from_its_dict():
    task = config(train="a", validation="b", labels=["O", "B-X"], tags=1)
    assert task_config(task.to_dict()) == task
    assert task.with_validation("c") == config(validation="c", labels=["O", "B-X"], tags=1)
    with pytest.raises(FinepruneError, match="no training data"):
        task.with_validation("c").load()


# -- tokens -----------------------------------------------------------------------------------


def test_labels_stand_on_first_tokens(load, tokenizer):
    data = load("good-film B-X\nvery O\n", "a O\nbad B-X\n")
    rows = data.train_rows(tokenizer, 16)
    # [CLS] good - film very [SEP]: "-" is no word of the vocabulary
    assert rows["input_ids"] == [[2, 5, 1, 7, 8, 3]]
    assert rows["labels"] == [[-100, 0, -100, -100, 1, -100]]
    batch = data.collator(tokenizer)(
        [{"input_ids": [2, 3], "labels": [-100, 1]}, {"input_ids": [2], "labels": [0]}]
    )
    assert batch["labels"].tolist() == [[-100, 1], [0, -100]]


def test_a_long_sentence_becomes_rows_and_no_word_is_lost(load, tokenizer):
    data = load("good-film B-X\nvery O\nbad B-Y\n", "a O\n")
    rows = data.train_rows(tokenizer, 4)  # two words a row beside [CLS] and [SEP]
    assert rows["input_ids"] == [[2, 5, 1, 3], [2, 7, 8, 3], [2, 6, 3]]
    assert rows["labels"] == [[-100, 0, -100, -100], [-100, -100, 2, -100], [-100, 1, -100]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_sentences_lose_no_word_and_are_scored_whole(load, side):
    """Eight words in rows of four: the entity in the middle lies in both."""
    import numpy as np
    from transformers import BertTokenizer

    words = ["good", "bad", "film", "very", "good", "bad", "film", "very"]
    marks = ["O", "O", "O", "B-PER", "I-PER", "O", "O", "O"]
    text = "".join(f"{word} {mark}\n" for word, mark in zip(words, marks, strict=True))
    data = load(text, "film B-PER\n\n" + text)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words[:4]]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocab)}, truncation_side=side)
    evaluation = data.evaluation(tokenizer, 6)
    assert evaluation.rows.column_names == data.train_rows(tokenizer, 6).column_names
    labels = evaluation.rows["labels"]
    assert [sum(label != -100 for label in row) for row in labels] == [1, 4, 4]
    truth = np.array([row + [-100] * (6 - len(row)) for row in labels])
    inside, outside = data.labels.index("I-PER"), data.labels.index("O")
    for guess, expected in ((truth, 1.0), (np.where(truth == inside, outside, truth), 0.5)):
        ids = np.where(guess == -100, 0, guess)
        found = SimpleNamespace(predictions=np.eye(3)[ids], label_ids=truth)
        assert evaluation.compute_metrics(found)["f1"] == expected
