"""Texts with labels as rows for a trainer."""

from fineprune.tasks.text.data import ClassificationData, Examples, encode


def test_encoding_by_hand(tokenizer):
    data = encode(Examples(["good film", "very"], None, [1, 0]), tokenizer, max_length=8)
    assert data["input_ids"][:] == [[2, 5, 7, 3], [2, 8, 3]]  # [CLS] good film [SEP], not padded
    assert data["attention_mask"][:] == [[1, 1, 1, 1], [1, 1, 1]]
    assert data["token_type_ids"][:] == [[0, 0, 0, 0], [0, 0, 0]]
    assert data["labels"][:] == [1, 0]
    assert data.cache_files == []


def test_of_a_pair_the_longer_text_is_cut_first(tokenizer):
    data = encode(Examples(["good", "a b"], ["bad bad bad bad", "very"]), tokenizer, max_length=6)
    assert data["input_ids"][:] == [[2, 5, 3, 6, 6, 3], [2, 9, 10, 3, 8, 3]]
    assert data["token_type_ids"][:] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert "labels" not in data.column_names


def test_a_long_text_is_cut_and_an_empty_one_is_allowed(tokenizer):
    data = encode(Examples(["very " * 50, ""]), tokenizer, max_length=4)
    assert data["input_ids"][:] == [[2, 8, 8, 3], [2, 3]]


def test_the_head_has_the_labels_or_one_output():
    classes = ClassificationData(None, Examples([]), ("neg", "pos"), "accuracy")
    assert classes.head() == {
        "id2label": {0: "neg", 1: "pos"},
        "label2id": {"neg": 0, "pos": 1},
        "problem_type": "single_label_classification",
    }
    values = ClassificationData(None, Examples([]), None, "pearson")
    assert values.head() == {"num_labels": 1, "problem_type": "regression"}


def test_training_rows_keep_their_order_and_validation_rows_are_sorted(tokenizer):
    train = Examples(["good film", "bad"], None, [1, 0])
    data = ClassificationData(train, train, ("neg", "pos"), "accuracy")
    assert data.train_rows(tokenizer, 8)["labels"][:] == [1, 0]
    evaluation = data.evaluation(tokenizer, 8)
    assert evaluation.rows["labels"][:] == [0, 1]
    assert evaluation.more == {}
    assert ClassificationData(None, train, ("neg", "pos"), "accuracy").train_rows(tokenizer, 8) is None
