import numpy as np
import pytest

from fineprune.training.run.constant_answers import Answers, Watched, look

LABELS = {0: "neg", 1: "pos"}
POS, NEG = [0.0, 1.0], [1.0, 0.0]


@pytest.mark.parametrize(
    ("head", "predictions", "truth", "answers"),
    [
        ("texts", [POS, POS, POS, POS], [1, 0, 1, 1], Answers(True, "pos", 0.75)),
        ("texts", [POS, NEG, POS, POS], [1, 0, 1, 1], Answers(False, None, 0.75)),
        ("texts", [POS, POS], [1, 1], Answers(False, None, 1.0)),  # there is one class to be found
        (
            "tokens",
            [[POS, POS, NEG], [POS, POS, NEG]],
            [[1, 0, -100], [1, 1, -100]],
            Answers(True, "pos", 0.75),
        ),
        ("tokens", [[POS, NEG], [POS, POS]], [[1, 0], [1, 1]], Answers(False, None, 0.75)),
        ("values", [[0.5], [0.5], [0.5]], [0.0, 5.0, 2.0], Answers(True, None, None)),
        ("values", [[0.5], [0.6], [0.5]], [0.0, 5.0, 2.0], Answers(False, None, None)),
        ("values", [[0.5], [0.5]], [2.0, 2.0], Answers(False, None, None)),
        ("spans", ([[9, 1], [9, 2]], [[5, 1], [3, 1]]), None, Answers(True, None, None)),
        ("spans", ([[9, 1], [1, 2]], [[5, 1], [3, 1]]), None, Answers(False, None, None)),
    ],
)
def test_answers(head, predictions, truth, answers):
    assert look(head, predictions, truth, LABELS) == answers


def test_the_first_evaluation_is_looked_at():
    class Evaluation:
        def __init__(self, logits):
            self.predictions, self.label_ids = np.array(logits), np.array([0, 1])

    watched = Watched(lambda evaluation: {"accuracy": 0.5}, "texts", LABELS)
    assert watched(Evaluation([POS, POS])) == {"accuracy": 0.5}
    watched(Evaluation([POS, NEG]))  # of a further validation set
    assert watched.answers == Answers(True, "pos", 0.5)
