"""From a spec to the gradient transformation that a training step runs.

For a named optimizer, at update t = 1, 2, ... with learning rate a = learning_rate(t - 1):
    g <- g min(1, clip_norm / |g|)              one factor for all parameters
    the stages of the optimizer in their order; for most of them
        u <- rule(g)                            the preconditioner, per parameter
        u <- u + weight_decay x                 where the decay mask is True
        update = -a u
Parameters of less than float32 precision are widened first; slots and updates are float32, and
the sum of parameter and update is rounded once, by `apply_updates`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from flaxtrain.checks import is_concrete
from flaxtrain.durations import Horizon
from flaxtrain.errors import ArgumentError, ParameterError, nearest
from flaxtrain.optim import NAMED, GradientTransformation, safe_increment, with_extra_args
from flaxtrain.optim.stages import init_stages, update_stages
from flaxtrain.optim.transform import require_params
from flaxtrain.params import Facts, decay_mask
from flaxtrain.schedules import Schedule
from flaxtrain.spec.opt_spec import OptSpec
from flaxtrain.spec.state import DEFAULT, OptState, applied_learning_rates, rate_at, rates_of
from flaxtrain.tree import Path, flatten, global_norm, is_none, key_of, path_name, widened
from flaxtrain.typing import Array, ArrayLike, Params, Updates

__all__ = ["build"]


def build(
    spec: OptSpec, facts: Facts, horizon: Horizon | None = None
) -> GradientTransformation:
    """Makes the gradient transformation that a spec declares.

    `update` takes `grad_norm=` if the norm of the gradient is known already, and hands other
    extra arguments to an optimizer object. The trees may be any part of the parameters that
    `facts` describes, as nested dicts: frozen parameters are simply not there.

    Args:
        spec: what the optimizer does.
        facts: the table of the model's parameters; the decay mask is made from it.
        horizon: the length of the run, for durations that are still relative.

    Returns:
        A transformation whose state is an `OptState`: `count`, `learning_rates`, and `slots`,
        which for a named optimizer maps each slot's name to a tree like the parameters. Its
        structure depends on the optimizer's rule only.

    Raises:
        ParameterError: the decay mask does not fit the parameters.
        ArgumentError: `horizon` lacks what a relative duration needs.

    Example:
        >>> import flax.linen as nn
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(1), jnp.ones((1, 2)))
        >>> tx = build(OptSpec("sgd", learning_rate=0.5, weight_decay=0.1), facts)
        >>> params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        >>> grads = jax.tree.map(jnp.zeros_like, params)
        >>> updates, state = tx.update(grads, tx.init(params), params)
        >>> print(updates["kernel"].ravel(), updates["bias"], state.learning_rates["default"])
        [-0.05 -0.05] [-0.] 0.5
    """
    spec = spec.resolve(horizon or Horizon())
    return _build_object(spec) if spec.name is None else _build_named(spec, facts)


class DecayedPaths(frozenset[Path]):
    """Paths of the parameters that decay; prints as their number."""

    def __repr__(self) -> str:
        return f"<{len(self)} parameters>"


def _build_named(spec: OptSpec, facts: Facts) -> GradientTransformation:
    entry = NAMED[str(spec.name)]
    stages = entry.stages(spec.learning_rate, **dict(spec.hyperparameters))
    weight_decay: Any = entry.weight_decay if spec.weight_decay is None else spec.weight_decay
    decayed = _decayed_paths(spec, facts, weight_decay)
    rate: Any = spec.learning_rate

    def init(params: Params, /) -> OptState:
        _check_paths(params, facts)
        slots = init_stages(stages, widened(params))
        return OptState(jnp.zeros([], jnp.int32), _not_yet([DEFAULT]), slots)

    def update(
        updates: Updates,
        state: OptState,
        params: Params | None = None,
        *,
        grad_norm: Array | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, OptState]:
        require_params(params, spec)
        learning_rate: Any = rate_at(rate, state.count)
        params = widened(params)

        def with_decay(updates: Updates, sign: int) -> Updates:
            return _add_decay(updates, params, sign * weight_decay, decayed)

        t = safe_increment(state.count)
        new, slots = update_stages(
            *(stages, t, _clipped(widened(updates), spec.clip_norm, grad_norm)),
            *(state.slots, params),
            learning_rate=learning_rate,
            decayed=with_decay,
            **extra_args,
        )
        applied = {DEFAULT: jnp.asarray(learning_rate, jnp.float32)}
        return new, OptState(t, applied, slots)

    return GradientTransformation(
        init, update, name="build", arguments={"spec": spec, "decayed": decayed}
    )


def _build_object(spec: OptSpec) -> GradientTransformation:
    given: Any = spec.optimizer
    tx = with_extra_args(given)
    for rate in rates_of(given).values():
        if isinstance(rate, Schedule) and not rate.is_resolved:
            raise ArgumentError(
                f"durations in an optimizer object are still relative: {rate!r}",
                where=f"{spec!r}",
                fix="call resolve(horizon) on the schedule, or pass the optimizer by name",
            )

    def known(inner: Any) -> dict[str, Array]:
        found = applied_learning_rates(inner, given)
        return {group: rate for group, rate in found.items() if rate is not None}

    def init(params: Params, /) -> OptState:
        inner = tx.init(params)
        return OptState(jnp.zeros([], jnp.int32), _not_yet(known(inner)), inner)

    def update(
        updates: Updates,
        state: OptState,
        params: Params | None = None,
        *,
        grad_norm: Array | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, OptState]:
        clipped = _clipped(updates, spec.clip_norm, grad_norm)
        new, inner = tx.update(clipped, state.slots, params, **extra_args)
        # Asked of the state inside: a wrapper may count other updates than we do.
        found = known(inner)
        applied = {g: found.get(g, before) for g, before in state.learning_rates.items()}
        return new, OptState(safe_increment(state.count), applied, inner)

    return GradientTransformation(init, update, name="build", arguments={"spec": spec})


def _not_yet(groups: Collection[str]) -> dict[str, Array]:
    return {group: jnp.zeros([], jnp.float32) for group in groups}


def _decayed_paths(spec: OptSpec, facts: Facts, weight_decay: ArrayLike) -> DecayedPaths:
    if is_concrete(weight_decay) and weight_decay == 0:
        return DecayedPaths()
    mask = flatten(decay_mask(facts, spec.decay))
    return DecayedPaths(path for path, decays in mask.items() if decays)


def _check_paths(params: Params, facts: Facts) -> None:
    """Refuses parameters that the table does not know: their mask would be a guess."""
    for keys, _ in jax.tree_util.tree_leaves_with_path(params):
        if _path(keys) not in facts:
            guess = nearest(path_name(keys), map(path_name, facts)) or ["(none)"]
            raise ParameterError(
                f"the model has no parameter {path_name(keys)!r}",
                where="build(spec, facts): init(params)",
                fix=f"pass params of the model that facts describes; nearest: {guess[0]}",
            )


def _path(keys: tuple[Any, ...]) -> Path:
    return tuple(map(key_of, keys))


def _clipped(grads: Updates, clip_norm: ArrayLike | None, norm: Array | None) -> Updates:
    if clip_norm is None:
        return grads
    if norm is None:
        norm = global_norm(widened(grads))
    # NaN compares False, so that it reaches every gradient and the step can be rejected.
    return _scaled(grads, jnp.where(norm < clip_norm, 1.0, clip_norm / norm))


def _scaled(tree: Updates, factor: ArrayLike) -> Updates:
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.real.dtype) * leaf, tree)


def _add_decay(
    updates: Updates, params: Params, weight_decay: ArrayLike, decayed: DecayedPaths
) -> Updates:
    def add(keys: tuple[Any, ...], update: Array | None, param: Array) -> Array | None:
        if update is None or _path(keys) not in decayed:
            return update
        return update + weight_decay * param

    if not decayed:
        return updates
    return jax.tree_util.tree_map_with_path(add, updates, params, is_leaf=is_none)
