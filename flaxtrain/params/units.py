"""What counts as one array, and as one unit of a layer, in a parameter that may be a stack.

A scanned kernel is one array for each layer. The unit of a kernel is what leads into one
output: its norm is taken over the axes that are summed over. Which these are, the module says
(`ParamFact.kernel_axes`): a kernel `(8, 2, 4)` may be `8 -> 2 x 4` or `8 x 2 -> 4`.
"""

from __future__ import annotations

from flaxtrain.params.axes import Shape
from flaxtrain.params.facts import ParamFact

__all__ = ["own_axes", "unit_axes"]

# Offsets and factors of a layer have no inputs: all of them together are one unit.
_WITHOUT_INPUTS = ("bias", "norm_scale", "norm_bias", "gain", "scalar")


def own_axes(fact: ParamFact) -> Shape:
    """Returns the axes of `fact.shape` that belong to one array: not those of a stack.

    Stacks are those of `nn.scan`, `nn.vmap` and `nn.remat_scan`, and arrays that a scan written
    by hand runs through.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.remat_scan(nn.Dense, lengths=(3,))(4), jnp.ones((2, 4)))
        >>> facts["kernel"].shape, own_axes(facts["kernel"])
        ((3, 4, 4), (1, 2))
    """
    rank = len(fact.shape)
    lifted = fact.lifted_axes if rank - len(fact.lifted_axes) == len(fact.local_shape) else ()
    stacked = {*lifted, *(() if fact.kernel_axes is not None else fact.scan_axes)}
    return tuple(axis for axis in range(rank) if axis not in stacked)


def unit_axes(fact: ParamFact) -> Shape:
    """Returns the axes of `fact.shape` over which the norm of one unit is taken.

    For kernels whose in axes are known, these. All axes of one array for vectors, and for
    biases, gains and the scales of norms, whatever their rank. For the rest by the rank of one
    array, as the code of Brock et al. 2021 (arXiv:2102.06171) has it: the first axis of rank 2
    and 3 (the first that is longer than 1), all but the last from rank 4 on.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.MultiHeadDotProductAttention(2), jnp.ones((1, 3, 8)))
        >>> unit_axes(facts["query/kernel"]), unit_axes(facts["out/kernel"])  # 8->2x4, 2x4->8
        ((0,), (0, 1))
        >>> facts["query/bias"].shape, unit_axes(facts["query/bias"])
        ((2, 4), (0, 1))
    """
    own = own_axes(fact)
    known = fact.kernel_axes
    if known is not None and all(axis < len(own) for axis in known.into):
        return tuple(own[axis] for axis in known.into)
    long = tuple(axis for axis in own if fact.shape[axis] != 1)
    if len(long) <= 1 or fact.role in _WITHOUT_INPUTS:
        return own
    return long[:1] if len(own) <= 3 else own[:-1]
