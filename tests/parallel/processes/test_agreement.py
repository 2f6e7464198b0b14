from __future__ import annotations

import pytest

from flaxtrain.errors import ProcessError
from flaxtrain.parallel.processes import agree
from flaxtrain.parallel.processes.agreement import decided, disagreement
from tests.parallel.processes.together import in_each_process


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


def test_processes_that_differ_all_raise_the_same_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = in_each_process(3, lambda index: agree({"seed": index // 2}), monkeypatch)
    assert all(isinstance(error, ProcessError) for error in found)
    (text,) = {str(error) for error in found}
    assert "disagree about seed" in text and "seed: 0 (processes 0, 1); 1 (process 2)" in text
    assert "before the first step" in text


def test_processes_that_agree_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    items = {"seed": 0, "rows": (4, 3), "spec": "adam"}
    assert in_each_process(3, lambda _: agree(items), monkeypatch) == [None] * 3


def test_a_function_is_the_same_wherever_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["<function rate at 0x7f0a1b2c>", "<function rate at 0x55d3c0ff>"]
    found = in_each_process(2, lambda index: agree({"spec": texts[index]}), monkeypatch)
    assert found == [None, None]


def test_process_0_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def together(index: int) -> int:
        return decided(index, lambda answers: 10 * sum(answers), where="here", timeout=20.0)

    assert in_each_process(3, together, monkeypatch) == [30] * 3


def test_one_that_does_not_come_is_named_by_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def together(index: int) -> None:
        if index != 2:
            agree({"seed": 0}, where="at the gate", timeout=0.3)

    first, second, late = in_each_process(3, together, monkeypatch)
    assert late is None and str(first) == str(second)
    assert "process 2 did not come within 0.3 seconds" in str(first)
    assert "at the gate" in str(first)


def test_process_0_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def together(index: int) -> None:
        if index:
            agree({"seed": 0}, timeout=-9.8)  # ten seconds are added for the decision

    _, other = in_each_process(2, together, monkeypatch)
    assert "process 0 did not come" in str(other)
