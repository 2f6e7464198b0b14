"""Checkpoints of adapters: what is in them, how large they are, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.checkpoint import read_meta, restore, save
from flaxtrain.checkpoint.adapter_files import load_adapters, read_lora, save_adapters
from flaxtrain.errors import ArgumentTypeError, CheckpointError, ParameterError
from flaxtrain.params import Adapters, LoRA, facts_from, join_adapters, split_adapters
from flaxtrain.tree import flatten
from tests.models import TransformerBlock
from tests.runs import same

LORA = LoRA("body/**/kernel", rank=2, alpha=6, train="head")


class Model(nn.Module):
    width: int = 8
    classes: int = 3

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.relu(nn.Dense(self.width, name="body")(x))
        return nn.Dense(self.classes, name="head")(x)


def bind(lora: LoRA, model: nn.Module, shape: tuple[int, ...] = (1, 6)) -> Adapters:
    def initialise(extra: dict[str, Any]) -> Any:
        return model.init({"params": jax.random.key(0), **extra}, jnp.ones(shape))

    return lora.bind(facts_from(initialise), initialise)


def random(adapters: Adapters, dtype: Any = None) -> Any:
    """Returns params with adapters, all values random: as after some training."""
    rng = np.random.default_rng(0)
    shapes = {
        fact.path: jax.ShapeDtypeStruct(fact.shape, dtype or fact.dtype)
        for fact in adapters.facts.params
    }
    nested: dict[str, Any] = {}
    for path, leaf in shapes.items():
        node = nested
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
    return nested


@pytest.fixture(scope="module")
def adapters() -> Adapters:
    return bind(LORA, Model())


def size_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


class Stack(nn.Module):
    """Two transformer blocks of width 512."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(2):
            x, _ = TransformerBlock(heads=8, dropout=0.0, train=False)(x)
        return x


def test_adapters_of_rank_4_take_less_than_5_percent_of_the_bytes_at_width_512(
    tmp_path: Path,
) -> None:
    adapters = bind(LoRA("**/kernel", rank=4), Stack(), (1, 4, 512))
    assert len(adapters.pairs) == 12
    params = random(adapters)
    base, own = split_adapters(params)
    small = save_adapters(tmp_path / "adapters", params, adapters)
    whole = save(tmp_path / "model", base)
    share = size_of(small) / size_of(whole)
    assert 0.005 < share < 0.05, share  # all that lies on the disk, manifests included
    loaded = load_adapters(small, base)
    for path, leaf in flatten(own).items():
        assert np.array_equal(flatten(loaded["lora"])[path], leaf)


def test_only_what_was_trained_is_written_with_what_it_was_trained_by(
    tmp_path: Path, adapters: Adapters
) -> None:
    path = save_adapters(tmp_path / "a", random(adapters), adapters)
    assert {"/".join(keys) for keys in flatten(restore(path))} == {
        "head/kernel",
        "head/bias",
        "lora/body/kernel/lora_a",
        "lora/body/kernel/lora_b",
    }
    expected = {"select": "body/**/kernel", "rank": 2, "alpha": 6.0, "train": "head"}
    assert read_meta(path) == {"lora": expected}
    assert read_lora(path) == LORA


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fine_tuned_model_comes_back_bitwise(
    tmp_path: Path, adapters: Adapters, dtype: str
) -> None:
    params = random(adapters, dtype)
    base = split_adapters(params)[0]
    start = {**base, "head": jax.tree.map(jnp.zeros_like, base["head"])}
    path = save_adapters(tmp_path / "a", params, adapters)
    loaded = load_adapters(path, start, LORA)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert same(loaded, params)
    for found, leaf in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert isinstance(found, jax.Array) and found.dtype == leaf.dtype
    # What was not saved is not copied either.
    assert loaded["body"]["kernel"] is start["body"]["kernel"]
    assert not np.any(start["head"]["bias"])
    merged = read_lora(path).merge(loaded)
    assert np.array_equal(merged["body"]["kernel"], LORA.merge(params)["body"]["kernel"])


def test_numpy_params_get_numpy_adapters(tmp_path: Path, adapters: Adapters) -> None:
    params = jax.tree.map(np.asarray, random(adapters))
    path = save_adapters(tmp_path / "a", params, adapters)
    loaded = load_adapters(path, split_adapters(params)[0])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded))
    assert np.array_equal(
        loaded["lora"]["body"]["kernel"]["lora_a"], params["lora"]["body"]["kernel"]["lora_a"]
    )


def test_adapters_are_on_the_device_of_their_kernel(tmp_path: Path, adapters: Adapters) -> None:
    params = random(adapters)
    base = jax.device_put(split_adapters(params)[0], jax.devices()[0])
    path = save_adapters(tmp_path / "a", params, adapters)
    pair = load_adapters(path, base)["lora"]["body"]["kernel"]
    assert all(leaf.committed for leaf in pair.values())
    uncommitted = load_adapters(path, split_adapters(params)[0])["lora"]["body"]["kernel"]
    assert not any(leaf.committed for leaf in uncommitted.values())


def test_selectors_that_are_no_text_come_back_as_text_that_selects_the_same(
    tmp_path: Path,
) -> None:
    lora = LoRA(
        ["body/kernel"], rank=2, train=lambda fact: fact.path[0] == "head" and "b" in fact.name
    )
    model = Model()
    adapters = bind(lora, model)
    again = bind(read_lora(save_adapters(tmp_path / "a", random(adapters), adapters)), model)
    assert again.trainable == adapters.trainable and ("head", "bias") in again.trainable


def test_a_checkpoint_is_replaced_only_when_asked(tmp_path: Path, adapters: Adapters) -> None:
    params = random(adapters)
    path = save_adapters(tmp_path / "a", params, adapters)
    with pytest.raises(CheckpointError, match="something at this path"):
        save_adapters(path, params, adapters)
    params["head"] = jax.tree.map(lambda leaf: leaf + 1, params["head"])
    save_adapters(path, params, adapters, overwrite=True)
    loaded = load_adapters(path, split_adapters(params)[0])
    assert np.array_equal(loaded["head"]["bias"], params["head"]["bias"])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (LoRA("**", rank=3, alpha=9), "lora= says rank 3 and scale 3"),
        (LoRA("**", rank=2, alpha=4), "lora= says rank 2 and scale 2"),
        (LoRA("**", rank=2), "lora= says rank 2 and scale 1"),
    ],
)
def test_another_rank_or_scale_is_refused(
    tmp_path: Path, adapters: Adapters, other: LoRA, text: str
) -> None:
    params = random(adapters)
    path = save_adapters(tmp_path / "a", params, adapters)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_adapters(path, split_adapters(params)[0], other)
    assert "LoRA('body/**/kernel', rank=2, alpha=6.0" in str(caught.value.fix)


def without(params: Any, key: str) -> Any:
    return {name: tree for name, tree in params.items() if name != key}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: without(p, "body"), "adapters for 'body', not in the params"),
        (lambda p: without(p, "head"), "extra    head/kernel"),
        (lambda p: random(bind(LORA, Model(width=9))), "float32[8,3] in the checkpoint"),
        (lambda p: {**p, "body": {"kernel": jnp.ones((6, 9))}}, "has shape (6, 9)"),
        (
            lambda p: {**p, "head": jax.tree.map(lambda x: x.astype(jnp.bfloat16), p["head"])},
            "dtype    head/bias",
        ),
    ],
)
def test_params_that_do_not_fit_are_refused_with_their_path(
    tmp_path: Path, adapters: Adapters, change: Any, text: str
) -> None:
    params = random(adapters)
    path = save_adapters(tmp_path / "a", params, adapters)
    base = without(change(split_adapters(params)[0]), "lora")
    with pytest.raises(CheckpointError) as caught:
        load_adapters(path, base)
    assert text in str(caught.value) and "for these params" in str(caught.value)
    assert "that the fine-tuning started from" in str(caught.value.fix)


def test_params_that_have_adapters_already_are_refused(
    tmp_path: Path, adapters: Adapters
) -> None:
    params = random(adapters)
    path = save_adapters(tmp_path / "a", params, adapters)
    with pytest.raises(ParameterError, match="'lora' already"):
        load_adapters(path, params)


def test_other_checkpoints_and_damaged_ones_are_refused(
    tmp_path: Path, adapters: Adapters
) -> None:
    params = random(adapters)
    base = split_adapters(params)[0]
    whole = save(tmp_path / "whole", params)
    with pytest.raises(CheckpointError, match="not one of adapters"):
        load_adapters(whole, base)
    with pytest.raises(CheckpointError, match="can't be read"):
        read_lora(save(tmp_path / "odd", {}, meta={"lora": {"rank": 0, "select": "a"}}))
    with pytest.raises(CheckpointError, match="can't be read"):
        read_lora(save(tmp_path / "new", {}, meta={"lora": {"rank": 1, "from": "later"}}))
    empty = save(tmp_path / "empty", {}, meta={"lora": {"rank": 1, "select": "a"}})
    with pytest.raises(CheckpointError, match="have no adapters"):
        load_adapters(empty, base)
    with pytest.raises(CheckpointError):
        load_adapters(tmp_path / "nowhere", base)
    path = save_adapters(tmp_path / "a", params, adapters)
    file = max((path / "arrays").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load_adapters(path, base)


def test_params_that_lack_what_was_trained_are_not_saved(
    tmp_path: Path, adapters: Adapters
) -> None:
    params = random(adapters)
    wide = random(bind(LoRA("body/kernel", rank=3, train="head"), Model()))
    for wrong, text in [
        (split_adapters(params)[0], "there is no 'lora/body/kernel/lora_a' in the params"),
        (without(params, "head"), "there is no 'head/bias'"),
        (wide, "'lora/body/kernel/lora_a' has the shape (6, 1, 3), not (6, 1, 2)"),
    ]:
        with pytest.raises(ParameterError) as caught:
            save_adapters(tmp_path / "a", wrong, adapters)
        assert text in str(caught.value) and caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked_types")
def test_arguments_of_the_wrong_type_are_refused(tmp_path: Path, adapters: Adapters) -> None:
    params: Any = random(adapters)
    wrong: Any = LORA
    with pytest.raises(ArgumentTypeError, match="adapters is a LoRA"):
        save_adapters(tmp_path / "a", params, wrong)
    wrong = [params]
    with pytest.raises(ArgumentTypeError, match="params is a list"):
        save_adapters(tmp_path / "a", wrong, adapters)
    path = save_adapters(tmp_path / "a", params, adapters)
    with pytest.raises(ArgumentTypeError, match="params is a list"):
        load_adapters(path, wrong)
    wrong = adapters
    with pytest.raises(ArgumentTypeError, match="lora is an Adapters"):
        load_adapters(path, split_adapters(params)[0], wrong)


def test_joined_params_are_what_was_saved(tmp_path: Path, adapters: Adapters) -> None:
    """Adapters at their start, of a model that was never trained, come back as well."""
    base = split_adapters(random(adapters))[0]
    params = join_adapters(base, adapters.init(jax.random.key(3)))
    loaded = load_adapters(save_adapters(tmp_path / "a", params, adapters), base)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))
