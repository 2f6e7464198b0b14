"""RMSProp: gradients divided by the root of a moving average of their squares.

Tieleman & Hinton 2012, "Lecture 6.5 - RMSProp", cs.toronto.edu/~tijmen/csc321/slides/
lecture_slides_lec6.pdf.
Graves 2013, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, equations
38 to 41 (centered, with momentum).

For one array, with u of `scale_by_rms`, or centered, of `scale_by_stddev`:
    x <- x - learning_rate u
Momentum acts on the finished step, behind the learning rate:
    trace <- -learning_rate u + momentum trace        x <- x + trace
"""

from __future__ import annotations

from flaxtrain.checks import check_flag, check_number
from flaxtrain.errors import ArgumentError
from flaxtrain.optim.combine import chain
from flaxtrain.optim.moments import Decay, check_decays
from flaxtrain.optim.rms import RmsOptions, rms_rule, scale_by_rms, scale_by_stddev
from flaxtrain.optim.scale import check_learning_rate, scale_by_learning_rate
from flaxtrain.optim.sgd import Trace, trace
from flaxtrain.optim.stages import DECAY, RATE, Stage
from flaxtrain.optim.transform import GradientTransformation, answering, identity, named
from flaxtrain.typing import ArrayLike, DTypeLike, Schedule

__all__ = ["rmsprop", "rmsprop_stages"]


@answering
def rmsprop_stages(
    rho: Decay = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> tuple[Stage, ...]:
    """Returns the stages for these hyperparameters, after checking them.

    They are those of `rmsprop`, but for `rho`: its `decay`, which in a spec says which
    parameters decay.

    Raises:
        ArgumentError: a value is out of range, or `nesterov` is given without `momentum`.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> [type(stage).__name__ for stage in rmsprop_stages(momentum=0.5)]
        ['Rms', 'Place', 'Place', 'Trace']
    """
    check_flag("centered", centered, where="rmsprop")
    _check_momentum(momentum, nesterov)
    check_decays(rho=rho, where="rmsprop")
    options = RmsOptions(rho, eps, initial_scale, eps_in_sqrt, bias_correction)
    stages = (rms_rule(options, centered=centered, where="rmsprop"), DECAY, RATE)
    if momentum is not None:
        return (*stages, Trace(momentum, bool(nesterov)))
    if nesterov:
        raise ArgumentError(
            "nesterov=True without momentum has no effect",
            where="rmsprop",
            fix="pass momentum, such as momentum=0.9",
        )
    return stages


def _check_momentum(momentum: ArrayLike | None, nesterov: bool) -> None:
    check_flag("nesterov", nesterov, where="rmsprop")
    if momentum is not None:
        check_number("momentum", momentum, minimum=-1.0, maximum=1.0, where="rmsprop")


@named
def rmsprop(
    learning_rate: ArrayLike | Schedule,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    state_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    """RMSProp: gradients divided by the root of a moving average of their squares.

    Without bias correction, and with `initial_scale=0`, the first update is `(1 - decay)^-0.5`
    times the learning rate: 3.16 times for the default decay.

    Args:
        learning_rate: a number >= 0, or a schedule of the number of updates already applied.
        decay: decay of the moments, in [0, 1).
        eps: keeps the denominator away from 0, >= 0.
        initial_scale: where the second moment begins, >= 0.
        eps_in_sqrt: add eps under the root; else to the root, as PyTorch does.
        centered: divide by the standard deviation: `scale_by_stddev`.
        momentum: what remains of the last step, in [-1, 1]; it acts behind the learning rate.
            None: no trace is kept.
        nesterov: apply the momentum once more to the new trace; ignored without momentum.
        bias_correction: divide the moments by the total weight of the gradients in them.
        state_dtype: as for `scale_by_rms`; of the trace as well.

    Raises:
        ArgumentError: a value is out of range.
        ArgumentTypeError: a value has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> tx, x = rmsprop(0.1, decay=0.75), jnp.float32(1.0)
        >>> updates, state = tx.update(2 * x, tx.init(x))
        >>> print(round(float(x + updates), 4))
        0.8
    """
    check_learning_rate(learning_rate, where="rmsprop")
    check_flag("centered", centered, where="rmsprop")
    _check_momentum(momentum, nesterov)
    direction = scale_by_stddev if centered else scale_by_rms
    momentum_part = identity()
    if momentum is not None:
        momentum_part = trace(momentum, nesterov, state_dtype=state_dtype)
    return chain(
        direction(
            *(decay, eps, initial_scale, eps_in_sqrt, bias_correction), state_dtype=state_dtype
        ),
        scale_by_learning_rate(learning_rate),
        momentum_part,
    )
