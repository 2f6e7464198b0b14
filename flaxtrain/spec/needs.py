"""What a training step gives an optimizer object beside the gradient.

An update says what it needs by its keyword arguments, as is the custom for transformations:
`update(updates, state, params, *, value, grad, value_fn, **extra_args)`. A step offers

value      the loss of the update's rows, a scalar
grad       their gradient, before any clipping, like the parameters of the object's group
value_fn   from such parameters to the loss of the same batch: same dropout, same statistics
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.errors import ArgumentError
from flaxtrain.optim import TransformationLike, with_extra_args
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.tree import Path, flatten, key_of, unflatten
from flaxtrain.typing import Params

# Nothing here is public: `assign` and `build` are.
__all__ = []

ALL = ("value", "grad", "value_fn")


def offered(spec: OptSpec) -> tuple[str, ...]:
    """Returns the names of what a step of this spec offers."""
    if spec.accumulation.count == 1:
        return ALL
    return ("value", "grad")  # the batches before the last one are gone


def check_needs(
    tx: TransformationLike, params: Mapping[Path, jax.ShapeDtypeStruct], spec: OptSpec
) -> None:
    """Tries an update by shapes only.

    Args:
        tx: the optimizer object.
        params: the parameters that it sees.
        spec: the spec of the run.

    Raises:
        ArgumentError: the object can't make an update from what a step offers.
    """
    given = offered(spec)
    problem = _problem(tx, params, given)
    if problem is None:
        return
    where = f"{spec!r}"
    if given != ALL and _problem(tx, params, ALL) is None:
        raise ArgumentError(
            "the optimizer object needs value_fn, the loss as a function of the parameters, "
            f"and {spec.accumulation.count} batches make one update: most of them are gone "
            "by then",
            where=where,
            fix="pass accumulate=k, which splits one batch, instead of AccumulateBatches(k)",
        )
    fix = "try its init and update on the model's parameters by hand"
    if problem.startswith("TypeError"):
        fix = f"{fix}; keyword arguments without a default must be among these"
    raise ArgumentError(
        "the optimizer object can't make an update from what a step gives it: gradients, "
        f"parameters, {', '.join(given)}: {problem}",
        where=where,
        fix=fix,
    )


def _problem(
    tx: TransformationLike, params: Mapping[Path, Any], names: tuple[str, ...]
) -> str | None:
    """Returns why an update with these keyword arguments fails; None where it does not."""
    update = with_extra_args(tx).update

    def once(leaves: list[Any]) -> Any:
        tree = unflatten(dict(zip(params, leaves)))
        extra = {"value": jnp.zeros(()), "grad": tree, "value_fn": _any_value}
        return update(tree, tx.init(tree), tree, **{name: extra[name] for name in names})

    try:
        jax.eval_shape(once, list(params.values()))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
    return None


def _any_value(params: Params) -> Any:
    leaves = jax.tree.leaves(params)
    return sum((jnp.sum(leaf).real.astype(jnp.float32) for leaf in leaves), jnp.zeros(()))


def value_fn_of(
    part: Mapping[Path, Any], others: Params, value_fn: Callable[[Params], Any]
) -> Callable[[Params], Any]:
    """Returns the loss as a function of the parameters of one group; the others stay.

    Args:
        part: the group's parameters.
        others: all trained parameters.
        value_fn: from all of them to the loss.
    """

    def value(own: Params) -> Any:
        new = flatten(own)

        def chosen(keys: Any, leaf: Any) -> Any:
            path = tuple(map(key_of, keys))
            return new[path] if path in part else leaf

        return value_fn(jax.tree_util.tree_map_with_path(chosen, others))

    return value
