from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtrain.errors import ArgumentTypeError, ParameterError
from flaxtrain.params.restore import Restore
from flaxtrain.params.restoring import apply_restore


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def fresh() -> dict:
    """Zeros everywhere: what is not zero afterwards was loaded."""
    return jax.tree.map(
        jnp.zeros_like,
        {
            "params": {
                "body": {"conv": {"kernel": ones(3, 3, 1, 2)}, "bn": {"scale": ones(2)}},
                "head": {"kernel": ones(2, 5), "bias": ones(5)},
            },
            "batch_stats": {"body": {"bn": {"mean": ones(2), "var": ones(2)}}},
        },
    )


def pretrained() -> dict:
    variables = jax.tree.map(np.ones_like, jax.device_get(fresh()))
    return {
        "params": {
            "enc": variables["params"]["body"],
            "head": {"kernel": ones(2, 10), "bias": ones(10)},
        },
        "batch_stats": {"enc": variables["batch_stats"]["body"]},
    }


def restored(source, target=None, **arguments):
    restore = Restore(source, **arguments)
    return apply_restore(restore, source, fresh() if target is None else target)


RENAMED = {"rename": {"enc/(.*)": r"body/\1"}}


def test_one_rename_moves_parameters_and_statistics_and_a_skipped_head_starts_anew() -> None:
    target = fresh()
    variables, report = restored(pretrained(), target, **RENAMED, skip=["head"])
    sums = {name: float(leaf.sum()) for name, leaf in report_leaves(variables).items()}
    assert sums["batch_stats/body/bn/mean"] == 2 and sums["params/body/conv/kernel"] == 18
    assert variables["params"]["head"]["kernel"] is target["params"]["head"]["kernel"]
    assert jax.tree.structure(variables) == jax.tree.structure(target)
    assert report.summary == "loaded 4 arrays (4 renamed), skipped 2"
    assert [record.path for record in report.skipped] == ["head/bias", "head/kernel"]
    assert report.skipped[1].source_array == "float32[2,10]"


def report_leaves(tree) -> dict:
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_the_restored_model_computes_what_the_pretrained_one_did() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Body(name="backbone")(x)

    x = jax.random.normal(jax.random.key(0), (3, 2))
    source = Body().init(jax.random.key(1), x)
    target = Outer().init(jax.random.key(2), x)
    restore = Restore(source, rename={"(.*)": r"backbone/\1"})
    variables, report = apply_restore(restore, source, target)
    assert np.array_equal(Outer().apply(variables, x), Body().apply(source, x))
    assert len(report.loaded) == len(report.renamed) == 6


def test_the_first_rename_that_matches_decides_and_may_move_between_collections() -> None:
    source = {"bn": {"running_mean": ones(2), "weight": ones(2), "running_var": ones(2)}}
    target = {
        "params": {"bn": {"scale": jnp.zeros(2)}},
        "batch_stats": {"bn": {"mean": jnp.zeros(2), "var": jnp.zeros(2)}},
    }
    rename = {
        "(.*)/running_(.*)": r"batch_stats/\1/\2",
        "(.*)/weight": r"params/\1/scale",
    }
    variables, report = restored(source, target, rename=rename)
    assert all(float(leaf.sum()) == 2 for leaf in jax.tree.leaves(variables))
    assert [record.source for record in report.loaded] == [
        "bn/running_mean",
        "bn/running_var",
        "bn/weight",
    ]


def test_a_rename_may_be_for_one_collection() -> None:
    source = {"params": {"a": {"w": ones(2)}}, "batch_stats": {"a": {"mean": ones(2)}}}
    target = {
        "params": {"b": {"w": jnp.zeros(2)}},
        "batch_stats": {"a": {"mean": jnp.zeros(2)}},
    }
    _, report = restored(source, target, rename={"params/a/(.*)": r"b/\1"})
    assert [record.path for record in report.renamed] == ["b/w"]
    assert len(report.loaded) == 2


def test_position_embeddings_are_resampled_and_square_kernels_transposed() -> None:
    source = {"pos": np.random.default_rng(0).normal(size=(1, 10, 4)), "w": np.tri(3)}
    target = {"pos": np.zeros((1, 17, 4)), "w": np.zeros((3, 3))}
    reshape = {"pos": "interp2d", "**": lambda array, shape: array.T}
    variables, report = restored(source, target, reshape=reshape)
    assert np.array_equal(variables["pos"][:, 0], source["pos"][:, 0])
    assert variables["pos"].std() > 0
    assert np.array_equal(variables["w"], np.tri(3).T)
    assert report.reshaped == report.loaded and len(report.loaded) == 2


def test_every_array_that_does_not_fit_is_listed_at_once() -> None:
    source = pretrained()
    source["params"]["enc"]["bn"]["scale"] = np.ones(2)
    source["params"]["enc"]["old"] = ones(7)
    del source["batch_stats"]["enc"]["bn"]["var"]
    with pytest.raises(ParameterError) as caught:
        restored(source, **RENAMED)
    lines = [line.strip() for line in caught.value.found.splitlines()]
    assert lines[0].endswith("variables: 1 dtype, 2 shape, 1 missing, 1 unused")
    assert lines[1] == "loaded 2 arrays (2 renamed), missing 1, unused 1"
    assert lines[2:] == [
        "dtype    body/bn/scale: float64 in the source, float32 here",
        "shape    head/bias: float32[10] in the source, float32[5] here",
        "shape    head/kernel: float32[2,10] in the source, float32[2,5] here",
        "missing  batch_stats/body/bn/var: float32[2] here, not in the source",
        "unused   enc/old: float32[7] in the source, not here",
    ]
    fix = str(caught.value.fix)
    assert all(word in fix for word in ("reshape=", "skip=", 'dtype="cast"', "strict=False"))


def test_a_long_list_says_how_much_more_there_is() -> None:
    source = {f"layer_{index}": np.ones(2) for index in range(50)}
    target = {name: ones(2) for name in source}
    with pytest.raises(ParameterError, match="50 dtype") as caught:
        restored(source, target)
    assert caught.value.found.count("float64 in the source") == 40
    assert caught.value.found.endswith("... and 10 more")


def test_a_missing_rename_is_guessed() -> None:
    with pytest.raises(ParameterError, match="5 missing, 4 unused") as caught:
        restored(
            {"params": pretrained()["params"]["enc"], "batch_stats": {"enc": ones(1)}}
            | {"params": {"enc": pretrained()["params"]["enc"], "tail": {"w": ones(9)}}},
            skip=["head/bias"],
        )
    assert r"likely: rename={'enc/(.*)': 'body/\\1'}" in str(caught.value.fix)
    assert "nearest unused: enc/bn/scale" in caught.value.found


def test_the_guess_is_right() -> None:
    source = pretrained()
    source["params"].pop("head")
    with pytest.raises(ParameterError) as caught:
        restored(source, skip=["head"])
    assert r"rename={'enc/(.*)': 'body/\\1'}" in str(caught.value.fix)
    assert restored(source, **RENAMED, skip=["head"])[1].unused == ()


def test_a_guess_does_not_move_what_is_in_its_place() -> None:
    source = pretrained()
    source["params"] |= source["params"].pop("enc")
    source["batch_stats"] = source["batch_stats"]["enc"]
    with pytest.raises(ParameterError) as caught:
        restored(source, skip=["head"])
    assert r"rename={'((?:bn|conv)(?:/.*)?)': 'body/\\1'}" in str(caught.value.fix)
    report = restored(source, skip=["head"], rename={"((?:bn|conv)(?:/.*)?)": r"body/\1"})[1]
    assert len(report.loaded) == 4 and not report.unused


def test_strict_false_reports_what_strict_refuses() -> None:
    source = {"head": {"bias": ones(5)}, "tail": {"bias": ones(1)}}
    variables, report = restored(source, strict=False)
    assert float(variables["params"]["head"]["bias"].sum()) == 5
    assert report.summary == "loaded 1 array, missing 5, unused 1"
    assert report.unused[0].source == "tail/bias"
    assert {record.path for record in report.missing} >= {"batch_stats/body/bn/mean"}


@pytest.mark.parametrize("strict", [True, False])
def test_a_shape_is_never_ignored(strict: bool) -> None:
    with pytest.raises(ParameterError, match="2 shape"):
        restored(pretrained(), **RENAMED, strict=strict)


def test_loading_nothing_is_an_error_also_when_not_strict() -> None:
    with pytest.raises(ParameterError, match="loaded 0 arrays, missing 6, unused 1"):
        restored({"elsewhere": ones(1)}, strict=False)
    with pytest.raises(ParameterError, match="all arrays are skipped"):
        restored(fresh(), skip=["params", "batch_stats"])


def test_skip_also_leaves_out_what_only_the_source_has() -> None:
    source = jax.device_get(fresh())
    source["params"]["decoder"] = {"kernel": ones(3)}
    _, report = restored(source, skip=["decoder"])
    assert [record.path for record in report.skipped] == ["decoder/kernel"]
    assert report.skipped[0].array == "" and len(report.loaded) == 6


def test_a_cast_is_made_on_request_and_reported() -> None:
    source = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) + 1 / 3, fresh())
    variables, report = restored(source, dtype="cast")
    assert report.cast == report.loaded and len(report.cast) == 6
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert float(variables["params"]["head"]["bias"][0]) == np.float32(1 / 3)


def test_two_arrays_for_one_path_are_refused_with_both_names() -> None:
    source = {"a": ones(2), "b": ones(2)}
    with pytest.raises(ParameterError, match="arrive at one path: a and b") as caught:
        restored(source, {"c": ones(2)}, rename={"a|b": "c"})
    assert caught.value.where == "c"


NO_EFFECT = [
    ({"rename": {"encoder/(.*)": r"body/\1"}}, "'encoder/(.*)' matches no path of the source"),
    ({"rename": {".*": r"x/\g<0>", "enc/(.*)": "y"}}, "'enc/(.*)' matches no path"),
    ({**RENAMED, "skip": ["haed"]}, "'haed' matches no path"),
    ({**RENAMED, "skip": ["head", "re:nothing"]}, "'re:nothing' matches no path"),
    ({**RENAMED, "reshape": {"body/cov": "interp2d"}}, "'body/cov' matches no path"),
]


@pytest.mark.parametrize(("arguments", "text"), NO_EFFECT)
def test_an_entry_without_effect_is_refused_with_the_nearest_paths(
    arguments: dict, text: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        restored(pretrained(), **arguments)
    assert text in caught.value.found
    assert "nearest: " in str(caught.value.fix) and "/" in str(caught.value.fix)


def test_a_rename_to_an_empty_key_is_refused() -> None:
    with pytest.raises(ParameterError, match="'body//kernel' of it, in which a key is empty"):
        restored({"x": {"kernel": ones(1)}}, rename={"x(.*)": r"body/\1"})


def test_params_alone_are_filled_from_variables_and_stay_params_alone() -> None:
    params, report = restored({"params": {"w": ones(2)}}, {"w": jnp.zeros(2)})
    assert params["w"].tolist() == [1, 1] and report.loaded[0].path == "w"


def test_abstract_variables_are_filled_with_arrays() -> None:
    target = jax.eval_shape(fresh)
    variables, _ = restored(jax.device_get(fresh()), target)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))


def test_a_training_state_gives_its_variables_and_the_rest_is_named() -> None:
    variables = jax.device_get(fresh())
    state = {"step": 3, "opt_state": {"mu": variables["params"]}, **variables}
    _, report = restored(state)
    assert len(report.loaded) == 6 and report.ignored == ("opt_state", "step")


@pytest.mark.usefixtures("unchecked_types")
def test_anything_but_a_restore_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="restore is a str, not a Restore"):
        apply_restore("/ckpt", {}, fresh())
