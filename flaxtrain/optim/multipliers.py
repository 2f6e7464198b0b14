"""Learning-rate factors for groups of parameters: `x <- x + factor * update`.

At the end of a chain the factor multiplies the learning rate, decay of weights included
(layer-wise rates, slower embeddings, discriminative fine-tuning: Howard & Ruder 2018,
arXiv:1801.06146).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.optim.choice import chooser, named_choices
from flaxtrain.optim.names import ParamName, names_of
from flaxtrain.optim.transform import GradientTransformation, named, stateless
from flaxtrain.typing import Array, ArrayLike, Params, PyTree, Updates

__all__ = ["Multipliers", "scale_by_multipliers"]

Multipliers: TypeAlias = Mapping[str, Any] | PyTree | Callable[[ParamName], ArrayLike]
"""A factor for each parameter: a tree like the parameters or a prefix of it, with or without
the level `params`; a mapping from paths, beginnings of paths or globs to factors, in which the
first match decides; or a function from a `ParamName` to a factor."""


@named
def scale_by_multipliers(
    multipliers: Multipliers, *, default: ArrayLike = 1.0
) -> GradientTransformation:
    """Makes the transformation that multiplies each parameter's update by a factor of its own.

    It goes to the end of a chain, where it multiplies the learning rate.

    Args:
        multipliers: numbers >= 0; see `Multipliers`.
        default: the factor of parameters that `multipliers` says nothing about, >= 0.

    Returns:
        A transformation without state.

    Raises:
        ArgumentError: a factor is negative, NaN or infinite.
        ArgumentTypeError: a factor is not a number.
        ParameterError: (from `update`) an entry matches no parameter; the nearest are named.

    Example:
        >>> from flaxtrain.optim import chain, sgd
        >>> tx = chain(sgd(1.0), scale_by_multipliers({"embedding": 0.5, "*/bias": 2.0}))
        >>> one = jnp.float32(1.0)
        >>> grads = {"embedding": one, "head": {"kernel": one, "bias": one}}
        >>> updates, state = tx.update({"params": grads}, tx.init(grads))
        >>> jax.tree.map(float, updates)
        {'params': {'embedding': -0.5, 'head': {'bias': -2.0, 'kernel': -1.0}}}
    """
    check_number("default", default, minimum=0.0, where="scale_by_multipliers")
    given = _of_names(multipliers) if callable(multipliers) else multipliers
    factors_of = chooser(given, what="tree of factors", check=_checked, default=default)

    def multiply(updates: Updates, params: Params | None) -> Updates:
        factors = factors_of(updates if params is None else params)
        return jax.tree.map(_multiplied, factors, updates)

    tx = stateless(multiply)

    def init(params: Params, /) -> Any:
        factors_of(params)  # raises before the first update
        return tx.init(params)

    return GradientTransformation(init, tx.update)


def _of_names(function: Callable[[Any], Any]) -> Callable[[Params], PyTree]:
    """Lets a function of one name be one of trees; another function is left as it is.

    Names come first: a function of names may well answer when it is asked about a dict.
    """

    def factors(params: Params) -> PyTree:
        names = names_of(params)
        try:
            found = jax.tree.map(function, names)
        except Exception:
            return function(params)
        is_per_name = jax.tree.structure(found) == jax.tree.structure(names)
        return found if is_per_name else function(params)

    return factors


def _checked(factors: PyTree) -> PyTree:
    for name, factor in named_choices(factors):
        check_number(
            f"the factor of {str(name)!r}", factor, minimum=0.0, where="scale_by_multipliers"
        )
    return factors


def _multiplied(factor: ArrayLike, updates: Updates) -> Updates:
    if is_concrete(factor) and factor == 1:
        return updates

    def multiply(update: ArrayLike) -> Array:
        update = jnp.asarray(update)
        inexact = jnp.issubdtype(update.dtype, jnp.inexact)
        return jnp.asarray(factor, update.real.dtype if inexact else None) * update

    return jax.tree.map(multiply, updates)
