"""The phases of a run: who is trained when, how old slots are, what modules do meanwhile."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flaxtrain.errors import ParameterError
from flaxtrain.params import Facts, param_facts
from flaxtrain.spec import Freeze
from flaxtrain.spec.phases import Activity, Frozen, Phase, changes_at, phase_at, phases_of
from tests.spec.small import net_facts

BODY = ("body", "kernel")
HEAD = ("head", "kernel")


def modules(phase: Phase) -> list[str]:
    """The modules that are trained in a phase."""
    return sorted({path[0] for path in phase.trained})


def spans(phases: tuple[Phase, ...]) -> list[tuple[int, int | None]]:
    return [(phase.start, phase.stop) for phase in phases]


def test_without_rules_there_is_one_phase() -> None:
    (phase,) = phases_of((), net_facts())
    assert (phase.index, phase.start, phase.stop) == (0, 0, None)
    assert set(phase.trained) == set(net_facts())
    assert set(phase.trained.values()) == {Activity(0, None, 0)}
    assert not phase.frozen


def test_a_freeze_ends_where_it_says() -> None:
    rule = Freeze("body | embed", until=10, rewarm=4)
    first, second = phases_of([rule], net_facts())
    assert spans((first, second)) == [(0, 10), (10, None)]
    assert modules(first) == ["head", "norm"]
    assert first.frozen[BODY] == Frozen("hold", "eval", False)
    assert first.with_slots == frozenset(first.trained)
    assert second.trained[BODY] == Activity(0, 10, 4)
    assert second.trained[HEAD] == Activity(10, None, 0)
    assert [phase_at((first, second), step).index for step in (0, 9, 10, 99)] == [0, 0, 1, 1]


@pytest.mark.parametrize(("slots", "age"), [("drop", 0), ("keep", 5)])
def test_slots_are_dropped_or_keep_their_age_over_a_freeze(slots: str, age: int) -> None:
    rule = Freeze("body", 20, start=5, slots=slots)  # type: ignore[arg-type]
    phases = phases_of([rule], net_facts())
    assert spans(phases) == [(0, 5), (5, 20), (20, None)]
    assert phases[1].frozen[BODY].keeps_slots is (slots == "keep")
    assert (BODY in phases[1].with_slots) is (slots == "keep")
    assert phases[2].trained[BODY] == Activity(age, 20, 0)
    assert phases[2].trained[HEAD].age == 20


@pytest.mark.parametrize(
    ("order", "turns"),
    [("top_down", ["norm", "body", "embed"]), ("bottom_up", ["embed", "body", "norm"])],
)
def test_layers_thaw_one_after_another(order: str, turns: list[str]) -> None:
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for name in ("embed", "body", "norm", "head"):
                x = nn.Dense(3, name=name)(x)
            return x

    facts = param_facts(Deep(), jnp.ones((2, 3)))
    rule = Freeze("~head", 10, every=5, order=order)  # type: ignore[arg-type]
    phases = phases_of([rule], facts)
    assert spans(phases) == [(0, 10), (10, 15), (15, 20), (20, None)]
    for count, phase in enumerate(phases):
        assert modules(phase) == sorted(["head", *turns[:count]])
    assert phases[-1].trained[turns[0], "kernel"].age == 10


def test_a_parameter_is_frozen_while_any_rule_says_so() -> None:
    rules = [
        Freeze("body", 10, stats="update"),
        Freeze("body/kernel", 20, start=5, slots="keep", mode="train"),
    ]
    phases = phases_of(rules, net_facts())
    # At step 5 a second rule begins, and the first one that holds goes on deciding.
    assert spans(phases) == [(0, 10), (10, 20), (20, None)]
    assert [BODY in phase.trained for phase in phases] == [False, False, True]
    assert phases[0].frozen[BODY] == Frozen("update", "eval", False)
    assert phases[1].frozen[BODY] == Frozen("hold", "train", False)  # it had no slots to keep
    assert ("body", "bias") in phases[1].trained
    assert phases[2].trained[BODY] == Activity(0, 20, 0)


def test_what_is_no_float_is_never_trained_and_its_module_is_left_alone() -> None:
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            self.param("table", lambda key: jnp.arange(3))
            return nn.Dense(1)(x)

    (phase,) = phases_of((), param_facts(Counts(), jnp.ones((1, 2))))
    assert phase.frozen == {("table",): Frozen("update", "train", False)}
    assert modules(phase) == ["Dense_0"]


def test_everything_frozen_and_selectors_without_a_match_are_refused() -> None:
    with pytest.raises(ParameterError, match="every parameter is frozen from step 0"):
        phases_of([Freeze("**")], net_facts())
    with pytest.raises(ParameterError, match="every parameter is frozen from step 7"):
        phases_of([Freeze("**", start=7, slots="drop")], net_facts())
    with pytest.raises(ParameterError, match="no parameter matches 'bady'"):
        phases_of([Freeze("bady")], net_facts())


def test_a_model_without_parameters_has_one_phase() -> None:
    assert len(phases_of((), Facts(()))) == 1


def test_a_rule_that_takes_over_from_an_equal_one_begins_no_phase() -> None:
    rules = [Freeze("body", until=5), Freeze("body", until=9), Freeze("embed", until=9)]
    assert spans(phases_of(rules, net_facts())) == [(0, 9), (9, None)]
    other = [Freeze("body", until=5), Freeze("body", until=9, mode="train")]
    phases = phases_of(other, net_facts())
    assert [phase.frozen[BODY].mode for phase in phases[:2]] == ["eval", "train"]
    assert phases[2].trained[HEAD].age == 9


def test_what_changes_is_said_by_name() -> None:
    rules = [Freeze("body/kernel", until=5), Freeze("head/kernel", start=5, slots="drop")]
    phases = phases_of(rules, net_facts())
    assert changes_at(phases, phases[0]) == ((), ())
    assert changes_at(phases, phases[1]) == (("body/kernel",), ("head/kernel",))
