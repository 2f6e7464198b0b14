"""What a run will do: parameters, groups, phases, layers and memory, before it begins."""

from __future__ import annotations

import functools
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxtrain as ft
from flaxtrain import schedules
from flaxtrain.loop import plan_parts
from flaxtrain.tree import nbytes
from tests.models import CNN
from tests.params.models import Block, Scanned

DATA = {"image": np.ones((300, 8, 8, 1), "float32"), "label": np.zeros(300, "int32")}

FINE_TUNING = ft.OptSpec(
    "adamw",
    schedules.warmup_cosine_decay_schedule(0.0, 1e-3, "10%", "100%"),
    weight_decay=0.1,
    clip_norm=1.0,
    layer_decay=0.5,
    groups=[
        ft.Group("Dense_0/**", name="head", lr_mult=10.0),
        ft.Group("#bias", optimizer="sgd", learning_rate=0.1, clip_norm=2.0),
    ],
    freeze=[
        ft.Freeze("Conv_*/** | BatchNorm_*/**", until="1ep", every="1ep"),
        ft.Freeze("BatchNorm_0/**", stats="update"),
    ],
)


SMALL = {"x": DATA["image"][:, 0, 0], "label": DATA["label"]}
STACK = {"x": np.ones((60, 4, 8), "float32"), "y": np.ones((60, 4, 8), "float32")}


def plan_of(
    spec: ft.OptSpec, model: nn.Module | None = None, data: Any = SMALL, epochs: int = 10
) -> ft.Plan:
    small = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)])
    trainer = ft.Trainer(model or small, spec, verbose=False)
    return trainer.plan(data, batch_size=60, epochs=epochs)


class Stack(nn.Module):
    """What `make` makes, without the state that it carries."""

    make: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.make()(x)[0]


@pytest.fixture(scope="module")
def plan() -> ft.Plan:
    return plan_of(FINE_TUNING, CNN(classes=10), DATA)


@functools.cache
def simple() -> ft.Plan:
    return plan_of(ft.OptSpec("adam", 1e-3))


def rows(plan: ft.Plan) -> dict[str, Any]:
    return {row.path: row for row in plan.table.rows}


# The table of parameters.


def test_each_parameter_has_its_group_decay_factor_and_time(plan: ft.Plan) -> None:
    found = {
        path: (row.group, row.decay, row.lr_mult, row.when or row.trainable)
        for path, row in rows(plan).items()
    }
    assert found == {
        "Conv_0/kernel": ("default", True, "0.25", "from step 10"),
        "Conv_0/bias": ("bias", False, "0.25", "from step 10"),
        "BatchNorm_0/scale": ("default", False, "0.25", False),
        "BatchNorm_0/bias": ("default", False, "0.25", False),
        "Conv_1/kernel": ("default", True, "0.5", "from step 5"),
        "Conv_1/bias": ("bias", False, "0.5", "from step 5"),
        "BatchNorm_1/scale": ("default", False, "0.5", "from step 5"),
        "BatchNorm_1/bias": ("default", False, "0.5", "from step 5"),
        "Dense_0/kernel": ("head", True, "10", True),
        "Dense_0/bias": ("head", False, "10", True),
    }
    assert rows(plan)["Conv_0/kernel"].rule == "class Conv"
    assert plan.table.totals[-1] == "frozen: 2 parameters, 8 values, 32 B"


def test_columns_without_something_to_say_are_left_out() -> None:
    assert simple().table.columns[6:] == ("decay", "trainable")
    assert simple().layers == ()
    assert "phases" not in simple().markdown()


def test_the_factors_of_a_stack_are_a_range() -> None:
    model = Stack(functools.partial(Scanned, Block))
    plan = plan_of(ft.OptSpec("adam", 1e-3, layer_decay=0.5), model, STACK)
    stack = next(row for row in plan.table.rows if row.path.endswith("up/kernel"))
    assert stack.lr_mult == "0.25..1"
    assert [layer.lr_mult for layer in plan.layers] == ["0.25", "0.5", "1"]


def test_a_freeze_within_the_run_is_told_as_spans() -> None:
    later = ft.Freeze("layers_0/**", start=6, slots="drop")
    freeze = [
        ft.Freeze("layers_1/bias", start=5, until=8, slots="keep"),
        ft.Freeze("layers_0/bias", until=3),
        later,
    ]
    found = rows(plan_of(ft.OptSpec("adam", 1e-3, freeze=freeze)))
    assert found["layers_1/bias"].when == "until step 5, from step 8"
    assert found["layers_0/kernel"].when == "until step 6"
    assert found["layers_0/bias"].when == "steps 3:6"
    assert found["layers_2/bias"].when == "" and found["layers_2/bias"].trainable is True


def test_what_an_optimizer_object_decays_is_not_known() -> None:
    plan = plan_of(ft.OptSpec(ft.optim.adamw(1e-3)))
    assert "decay" not in plan.table.columns
    assert not any(line.startswith("decayed") for line in plan.table.totals)
    assert plan.presets == {}
    mixed = ft.OptSpec(
        "adam", 1e-3, groups=[ft.Group("#kernel", optimizer=ft.optim.adamw(1e-3))]
    )
    found = rows(plan_of(mixed))
    assert (found["layers_0/kernel"].decay, found["layers_0/bias"].decay) == (None, False)


# Groups.


def test_groups_have_the_numbers_of_the_first_middle_and_last_update(plan: ft.Plan) -> None:
    head, bias, rest = plan.groups
    rate = schedules.warmup_cosine_decay_schedule(0.0, 1e-3, 5, 50)
    assert head.learning_rate == {
        step: pytest.approx(10 * float(np.asarray(rate(step)))) for step in (0, 24, 49)
    }
    assert rest.learning_rate == plan.learning_rate
    assert bias.learning_rate == dict.fromkeys((0, 24, 49), 0.1)
    assert (head.lr_mult, head.selects, head.optimizer) == (10.0, "Dense_0/**", "adamw")
    assert (bias.weight_decay, bias.clip_norm[0], bias.optimizer) == ({}, 2.0, "sgd")
    assert (rest.weight_decay[49], rest.clip_norm[0]) == (0.1, 1.0)
    assert [(g.parameters, g.values) for g in plan.groups] == [(2, 330), (2, 12), (6, 348)]
    assert plan.overlaps == (
        "group 'bias' also selects 1 of group 'head' ('Dense_0/bias'): the first of the two "
        "has them",
    )


def test_the_learning_rate_of_an_object_is_told_where_it_can_be_seen() -> None:
    def init(params: Any) -> tuple[()]:
        return ()

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return updates, state

    ours = plan_of(ft.OptSpec(ft.optim.sgd(0.5))).groups[0]
    assert (ours.learning_rate[0], ours.optimizer) == (0.5, "sgd (an object)")
    foreign = ft.optim.GradientTransformation(init, update)
    plan = plan_of(ft.OptSpec(foreign))
    assert plan.groups[0].learning_rate == plan.learning_rate == {}
    assert "in the object" in str(plan)


def test_a_scheduled_weight_decay_is_shown_with_its_values() -> None:
    decay = schedules.linear_schedule(0.1, 0.0, 49)
    plan = plan_of(ft.OptSpec("adamw", 1e-3, weight_decay=decay))
    assert plan.groups[0].weight_decay[24] == pytest.approx(0.1 * 25 / 49)
    assert "0.1, 0.051, 0" in str(plan)


# Phases.


def test_phases_have_what_is_trained_and_the_slots(plan: ft.Plan) -> None:
    first, second, third = plan.phases
    assert [(p.start, p.stop, p.parameters, p.values) for p in plan.phases] == [
        (0, 5, 2, 330),
        (5, 10, 6, 642),
        (10, None, 8, 682),
    ]
    assert first.thaws == first.freezes == ()
    assert third.thaws == ("Conv_0/bias", "Conv_0/kernel")
    assert plan.memory["slots"] == first.slots < second.slots < third.slots
    assert (
        "frozen modules from step 10 on: BatchNorm_0 as in evaluation, statistics updated"
        in str(plan)
    )


@pytest.mark.parametrize("name", ["adamw", "shampoo", "adafactor"])
def test_slots_of_a_phase_are_those_of_its_state(name: str) -> None:
    freeze = [
        ft.Freeze("Conv_0/**", until=4),
        ft.Freeze("Conv_1/**", start=2, slots="keep"),
        ft.Freeze("BatchNorm_1/**", start=2, slots="drop"),
    ]
    spec = ft.OptSpec(name, 1e-3, freeze=freeze)
    batch = {key: value[:4] for key, value in DATA.items()}
    recipe = ft.make_recipe(CNN(classes=10), spec, batch)
    state = jax.eval_shape(recipe.init)
    planned = plan_parts.planned_phases(recipe, state)
    assert len(planned) == 3
    for phase in planned:
        own = recipe.at(phase.start)
        assert phase.slots == nbytes(jax.eval_shape(own.init).opt_state)


def test_a_phase_after_the_end_is_marked() -> None:
    spec = ft.OptSpec("adam", 1e-3, freeze=ft.Freeze("layers_0/**", until=30))
    plan = plan_of(spec, epochs=2)
    assert "(after the end of the run)" in str(plan)
    assert "slots" in str(plan) and "; from step 30 on" not in str(plan)
    assert any("before the change at step 30" in text for text in plan.warnings)


# Layers and presets.


def test_layers_are_shown_where_the_spec_goes_by_them(plan: ft.Plan) -> None:
    assert [(layer.modules[0], layer.lr_mult, layer.trainable) for layer in plan.layers] == [
        ("Conv_0", "0.25", "no, from step 10"),
        ("Conv_1", "0.5", "from step 5"),
        ("Dense_0", "1", "yes"),
    ]
    gradual = ft.Freeze("layers_0/**", until=1, every=1)
    assert len(plan_of(ft.OptSpec("adam", 1e-3, freeze=gradual)).layers) == 2


def test_layers_of_a_stack_within_a_stack_have_the_factors_of_their_slices() -> None:
    inner = functools.partial(Scanned, Block, 2, 1)
    model = Stack(functools.partial(Scanned, inner, 3))
    plan = plan_of(ft.OptSpec("adam", 1e-3, layer_decay=0.5), model, STACK)
    assert [layer.lr_mult for layer in plan.layers] == [
        f"{0.5**n:.3g}" for n in range(5, -1, -1)
    ]


def test_the_difference_to_every_preset_is_shown() -> None:
    plan = plan_of(ft.OptSpec("adamw", 1e-3, decay="#kernel & ~layers_0/**"))
    assert plan.presets["kernels"] == (("layers_0/kernel",), ())
    text = str(plan)
    assert "decay presets  timm: 1 more (layers_0/kernel)" in text
    everything = plan_of(ft.OptSpec("adamw", 1e-3, decay="all"))
    assert everything.presets["all"] == ((), ())
    assert "decay presets  all: the same" in str(everything)
    assert "kernels: 4 fewer (layers_0/bias, layers_1/bias, layers_1/scale and 1 more)" in str(
        everything
    )


def test_presets_are_left_out_where_nothing_decays() -> None:
    assert plan_of(ft.OptSpec("sgd", 0.1)).presets == {}


# The whole.


def test_the_text_has_every_part(plan: ft.Plan) -> None:
    lines = str(plan).splitlines()
    for start in (
        "path               class",
        "group    selects",
        "steps  trained",
        "layer  lr_mult",
        "loss           softmax_cross_entropy",
        "batch          image float32[60, 8, 8, 1], label int32[60]",
        "batches        50 (5 per epoch)",
        "state          parameters 2.7 KiB, slots ",
        "frozen modules BatchNorm_0, BatchNorm_1, Conv_0, Conv_1 as in evaluation",
        "decay presets",
        "note           group 'bias' also selects",
    ):
        assert any(line.startswith(start) for line in lines), start
    spec = lines.index("spec           {")
    closing = lines.index(" " * 15 + "}")
    inside = "\n".join(line[15:] for line in lines[spec : closing + 1])
    assert ft.OptSpec.from_json(inside) == ft.OptSpec.from_json(plan.spec)
    assert "class Conv" in plan.text(rules=True) and "class Conv" not in str(plan)


def test_the_markdown_has_the_tables_with_the_rules(plan: ft.Plan) -> None:
    text = plan.markdown()
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == [f"### {t}" for t in ("parameters", "groups", "phases", "layers", "run")]
    assert "| default | no | 0.25 | no | class BatchNorm |" in text
    assert text.count("```") == 2


def test_the_plan_is_json_data(plan: ft.Plan) -> None:
    data = plan.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["phases"][1]["start"] == 5
    assert data["groups"][1]["learning_rate"]["49"] == 0.1
    assert data["spec"]["optimizer"] == "adamw"
    assert (
        plan_of(ft.OptSpec("sgd", lambda count: 0.1)).to_dict()["spec"].startswith("OptSpec(")
    )


def test_nothing_is_computed_with_the_model() -> None:
    seen: list[Any] = []

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: seen.append("ran"))
            return nn.Dense(10)(x)

    trainer = ft.Trainer(Model(), ft.OptSpec("adam", 1e-3), verbose=False)
    trainer.plan(SMALL, steps=1, batch_size=60)
    jax.effects_barrier()
    assert seen == []
    assert trainer.state is None and trainer.recipe is None
    Model().init(jax.random.key(0), SMALL["x"])
    jax.effects_barrier()
    assert seen  # so that the callback can be trusted


def test_a_plan_without_a_length_is_made() -> None:
    batches = ({"x": SMALL["x"][:4], "label": SMALL["label"][:4]} for _ in range(3))
    trainer = ft.Trainer(nn.Dense(2), ft.OptSpec("adam", 1e-3), verbose=False)
    plan = trainer.plan(batches)
    assert plan.learning_rate == {0: 1e-3}
    assert "batches        unknown (unknown per epoch)" in str(plan)
