from __future__ import annotations

from flaxtrain.parallel.agreement import disagreement


def test_only_what_differs_is_said_and_who_has_what() -> None:
    answers = [{"seed": "0", "rows": "[4]"} for _ in range(12)]
    answers[3] = {"seed": "7", "rows": "[4]"}
    title, *lines = disagreement(answers)
    assert title == "the processes disagree about seed"
    assert lines == ["seed: 0 (processes 0, 1, 2, 4, 5, 6, 7, 8, ...); 7 (process 3)"]


def test_an_item_that_one_does_not_have_differs() -> None:
    _, line = disagreement([{"spec": "adam"}, {}])
    assert line == "spec: adam (process 0); (nothing) (process 1)"


def test_long_texts_are_shown_around_their_first_difference() -> None:
    texts = ["x" * 500 + f"learning_rate={rate}" + "y" * 500 for rate in ("0.1", "0.2")]
    _, line = disagreement([{"spec": text} for text in texts])
    assert len(line) < 200
    assert "learning_rate=0.1yyy" in line and "learning_rate=0.2yyy" in line


def test_a_text_that_goes_on_where_another_one_ends_differs_there() -> None:
    _, line = disagreement([{"spec": "x" * 100}, {"spec": "x" * 100 + " and more"}])
    assert "x (process 0)" in line and "x and more (process 1)" in line
