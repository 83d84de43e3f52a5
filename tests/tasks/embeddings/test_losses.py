"""The losses of labeled texts are those of sentence-transformers; batches hold several texts of a row."""

import pytest
import torch
from sentence_folders import sentence_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses

from fineprune.errors import FinepruneError
from fineprune.tasks.embeddings.losses import GroupCollator, GroupLoss
from fineprune.tasks.opening import open_trained

COLUMNS = (["good film", "bad"], ["a very good film", "very bad film"], ["bad bad", "good a"])


@pytest.fixture(scope="module")
def place(pretrained, tmp_path_factory):
    """A Sentence Transformers folder with embeddings of 8 numbers."""
    return sentence_folder(pretrained, tmp_path_factory.mktemp("losses") / "model")


@pytest.mark.parametrize("sizes", [(), (8, 4)])
@pytest.mark.parametrize(("name", "count"), [("cosent", 2), ("ranking", 2), ("ranking", 3)])
def test_the_loss_of_a_batch_is_that_of_sentence_transformers(place, name, count, sizes):
    columns, scores = COLUMNS[:count], [0.2, 1.0]
    theirs = SentenceTransformer(place, device="cpu").eval()
    kinds = {"cosent": losses.CoSENTLoss, "ranking": losses.MultipleNegativesRankingLoss}
    loss = kinds[name](theirs)
    if sizes:
        loss = losses.MatryoshkaLoss(theirs, loss, list(sizes))
    features = [theirs.preprocess(texts) for texts in columns]
    wanted = loss(features, torch.tensor(scores))

    model, tokenizer, _ = open_trained(place, need_tokenizer=True)
    model.group_loss = GroupLoss(name, sizes, 8)
    rows = [
        {
            "input_ids": [tokenizer(text)["input_ids"] for text in texts],
            "attention_mask": [tokenizer(text)["attention_mask"] for text in texts],
            "labels": score,
        }
        for *texts, score in zip(*columns, scores, strict=True)
    ]
    found = model(**GroupCollator(tokenizer, distinct=True)(rows))["loss"]
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_rows_that_repeat_a_text_are_left_out_where_other_rows_are_wrong(place):
    tokenizer = open_trained(place, need_tokenizer=True).tokenizer
    rows = [
        {"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids], "labels": 0.0}
        for ids in ([[1, 2], [3]], [[4], [3]], [[5], [6, 7]], [[1, 2], [8]])
    ]
    batch = GroupCollator(tokenizer, distinct=True)(rows)
    assert batch["input_ids"].tolist()[0] == [1, 2]  # first texts of rows 0 and 2, then their second ones
    assert batch["input_ids"][:, 0].tolist() == [1, 5, 3, 6]
    assert len(batch["labels"]) == 2
    assert len(GroupCollator(tokenizer, distinct=False)(rows)["input_ids"]) == 8


def test_single_texts_are_padded_as_ever(place):
    tokenizer = open_trained(place, need_tokenizer=True).tokenizer
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in ([1, 2], [3])]
    batch = GroupCollator(tokenizer, distinct=True)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert "labels" not in batch


def test_sizes_over_that_of_the_embedding_are_refused():
    with pytest.raises(FinepruneError, match=r"task\.matryoshka=\[16, 8\]: the model's embeddings have 8"):
        GroupLoss("cosent", (16, 8), 8)
