"""What a plan says about where the first values come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

import flaxtrain as ft

DATA = {"x": np.ones((6, 3), "float32"), "label": np.zeros(6, "int32")}
SPEC = ft.OptSpec("sgd", 0.1)


def trainer(**arguments: Any) -> ft.Trainer:
    return ft.Trainer(nn.Dense(2), SPEC, verbose=False, **arguments)


def plan(**arguments: Any) -> ft.Plan:
    return trainer(**arguments).plan(DATA, steps=2, batch_size=3)


def double(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.repeat(2, axis=0)


def test_values_that_are_drawn_need_no_line() -> None:
    found = plan()
    assert found.initial_values == ()
    assert "\nstart " not in str(found)


def test_a_source_is_named_with_what_is_done_to_it_and_not_read() -> None:
    source = ft.Restore(
        "/nowhere/vit",
        rename={"enc/(.*)": r"body/\1"},
        skip=["head", "embed"],
        reshape={"pos": "interp2d", "bias": double},
        strict=False,
        dtype="cast",
    )
    found = plan(init_from=source)
    line = (
        r"weights from '/nowhere/vit'; renamed: 'enc/(.*)' to 'body/\\1'; "
        "skipped: head, embed; reshaped: pos by interp2d, bias by double; "
        "other dtypes are cast; what is missing keeps its initial value, what is unused is left"
    )
    assert found.initial_values == (line,)
    assert f"\nstart          {line}\n" in str(found)
    assert f"- **start** {line}" in found.markdown()
    assert found.to_dict()["initial_values"] == [line]


def test_a_tree_in_memory_is_described() -> None:
    source = ft.Restore({"kernel": np.ones((3, 2), "float32")})
    assert plan(init_from=source).initial_values == ("weights from <dict of 1 array>",)


def test_adapters_begin_without_effect() -> None:
    lora = ft.LoRA("kernel", rank=1)
    (line,) = plan(adapters=lora).initial_values
    assert line.startswith("Adapters(LoRA('kernel', rank=1): 1 kernel")
    assert line.endswith("with them the model begins as it is without")
    both = plan(adapters=lora, init_from=ft.Restore("/nowhere"))
    assert both.initial_values == ("weights from '/nowhere'", line)


def test_a_run_in_the_workdir_goes_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {"workdir": tmp_path, "init_from": ft.Restore("/nowhere")}
    assert plan(**given).initial_values == ("weights from '/nowhere'",)
    first = trainer(workdir=tmp_path)
    first.fit(DATA, steps=2, batch_size=3)
    line = f"checkpoint 2 of the run in {tmp_path}, which goes on"
    assert plan(workdir=tmp_path).initial_values == (line,)
    assert plan(**given).initial_values == (f"{line}; init_from= is not read again",)
    assert first.plan(DATA, steps=2, batch_size=3).initial_values == (
        "the trainer's state after 2 updates",
    )
