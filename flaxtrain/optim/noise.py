"""Gradients with Gaussian noise that fades.

Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep Networks",
arXiv:1511.06807, equation 1.

For t = 1, 2, ..., independently in every entry:
    g <- g + N(0, sigma^2)        sigma^2 = eta / t^gamma
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.checks import check_number, is_concrete
from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.optim.combine import chain
from flaxtrain.optim.per_leaf import safe_increment
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, named
from flaxtrain.typing import Array, ArrayLike, Key, OptState, Params, Schedule, Updates

__all__ = ["AddNoiseState", "add_noise", "noisy_sgd", "noisy_sgd_stages"]


class AddNoiseState(NamedTuple):
    """Number of updates (int32), and the key from which the next noise is drawn."""

    count: Any  # an Array
    rng_key: Key


@named
def add_noise(
    eta: ArrayLike, gamma: ArrayLike, key: ArrayLike | None = None, *, seed: int | None = None
) -> GradientTransformation:
    """Makes the transformation that adds Gaussian noise of variance `eta / t ** gamma`.

    Args:
        eta: variance of the noise at the first update, >= 0.
        gamma: how fast it fades, >= 0; 0.55 in the paper.
        key: an integer seed or a key of `jax.random`; None: the seed 0.
        seed: the same, an integer, by another name.

    Returns:
        A transformation whose state is an `AddNoiseState`.

    Raises:
        ArgumentError: a value is out of range, or both `key` and `seed` are given.
        ArgumentTypeError: a value is not a number, or no key.

    Example:
        >>> tx = add_noise(eta=1.0, gamma=0.55, key=3)
        >>> state, seen = tx.init(jnp.zeros(10_000)), []
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.zeros(10_000), state)
        ...     seen.append(round(float(jnp.std(updates)), 1))
        >>> seen
        [1.0, 0.8]
    """
    check_number("eta", eta, minimum=0.0, where="add_noise")
    check_number("gamma", gamma, minimum=0.0, where="add_noise")
    _check_key(key, seed)
    # As an integer, t ** 2 would leave int32 behind 46,340 updates.
    gamma = float(gamma) if isinstance(gamma, int) else gamma

    def init(params: Params, /) -> AddNoiseState:
        first = key if seed is None else seed
        return AddNoiseState(jnp.zeros([], jnp.int32), _key(0 if first is None else first))

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, AddNoiseState]:
        t = safe_increment(state.count)
        sigma = jnp.sqrt(eta / t**gamma)
        next_key, draw = jax.random.split(state.rng_key)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(draw, len(leaves)) if leaves else ()
        noisy = [_with_noise(leaf, sigma, k) for leaf, k in zip(leaves, keys)]
        return jax.tree.unflatten(structure, noisy), AddNoiseState(t, next_key)

    return GradientTransformation(init, update)


def _with_noise(update: ArrayLike, sigma: Array, key: Key) -> Array:
    update = jnp.asarray(update)
    return update + sigma * jax.random.normal(key, update.shape, update.dtype)


def _check_key(key: Any, seed: Any) -> None:
    if key is not None and seed is not None:
        raise ArgumentError(
            f"key={key!r} and seed={seed!r} both say how to draw",
            where="add_noise",
            fix="pass one of them",
        )
    for name, given in (("key", key), ("seed", seed)):
        if given is not None and is_concrete(given) and not _is_key(given):
            raise ArgumentTypeError(
                f"{name}={given!r} is neither an integer nor a key",
                where="add_noise",
                fix=f"pass {name}=0 or key=jax.random.key(0)",
            )


def _is_key(key: Any) -> bool:
    if isinstance(key, (bool, np.bool_)):
        return False
    if isinstance(key, (int, np.integer)) or _is_typed(key):
        return True
    if not isinstance(key, (np.ndarray, jax.Array)) or not jnp.issubdtype(
        key.dtype, np.integer
    ):
        return False
    return key.ndim == 0 or (key.ndim == 1 and key.dtype == np.uint32)


def _is_typed(key: Any) -> bool:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return typed and key.shape == ()


def _key(key: Any) -> Key:
    """Returns the typed key of a seed, of the data of a key, or the key itself."""
    if _is_typed(key):
        return key
    return jax.random.wrap_key_data(jnp.asarray(key)) if jnp.ndim(key) else jax.random.key(key)


@answering
def noisy_sgd_stages(
    eta: ArrayLike = 0.01,
    gamma: ArrayLike = 0.55,
    key: ArrayLike | None = None,
    *,
    seed: int | None = None,
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters (those of `noisy_sgd`), after checking them.

    Raises:
        ArgumentError: a value is out of range, or both `key` and `seed` are given.
        ArgumentTypeError: a value is not a number, or no key.

    Example:
        >>> noisy_sgd_stages(key=3)[0]
        add_noise(eta=0.01, gamma=0.55, key=3)
    """
    return add_noise(eta, gamma, key, seed=seed), DECAY, RATE


@named
def noisy_sgd(
    learning_rate: ArrayLike | Schedule,
    eta: ArrayLike = 0.01,
    gamma: ArrayLike = 0.55,
    key: ArrayLike | None = None,
    *,
    seed: int | None = None,
) -> GradientTransformation:
    """Gradient descent with Gaussian noise of variance `eta / t ** gamma` on the gradients.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied; it
            multiplies the noise as well.
        eta: variance of the noise at the first update, >= 0.
        gamma: how fast it fades, >= 0.
        key: an integer seed or a key of `jax.random`; None: the seed 0.
        seed: the same, an integer, by another name.

    Raises:
        ArgumentError: a value is out of range, or both `key` and `seed` are given.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> tx, x = noisy_sgd(0.25, eta=1e-4), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 1), float(x + updates) != 0.5)
        0.5 True
    """
    check_learning_rate(learning_rate, where="noisy_sgd")
    return chain(add_noise(eta, gamma, key, seed=seed), scale_by_learning_rate(learning_rate))
