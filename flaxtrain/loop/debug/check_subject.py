"""The model, state and batch that `Trainer.check` looks at, and what it runs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtrain.metrics.monoid import compute
from flaxtrain.parallel.compile import compiled
from flaxtrain.params.intercept import MethodCall, intercepted
from flaxtrain.train import Recipe, TrainState, eval_step, row_outputs, trial_gradient
from flaxtrain.train.flags import force_attributes, forced_call
from flaxtrain.tree import Path, flatten
from flaxtrain.typing import ArrayLike, Batch, HostTree

__all__ = ["Examined", "Gradients"]

Arrays = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class Gradients:
    """The gradient of one batch, parameter by parameter.

    Attributes:
        loss: the loss in training mode.
        largest: by path, the largest absolute value of each layer of a stack; of all other
            parameters there is one.
        finite: by path, whether all values are finite.
    """

    loss: float
    largest: Mapping[Path, npt.NDArray[Any]]
    finite: Mapping[Path, bool]


@dataclass(frozen=True, eq=False)
class Examined:
    """A model with a state and a batch to look at.

    Args:
        recipe: that of the first phase.
        state: the state before the first step.
        batch: a batch without padding, `[rows, ...]`.
    """

    recipe: Recipe
    state: TrainState
    batch: HostTree

    @property
    def rows(self) -> int:
        """Number of rows in the batch."""
        return jax.tree.leaves(self.batch)[0].shape[0]

    @cached_property
    def _gradients(self) -> Callable[..., Any]:
        facts, trained = self.recipe.facts, self.recipe.assignment.ever_trained

        def program(state: TrainState, batch: Batch) -> Any:
            loss, grads = trial_gradient(self.recipe, state, batch, trained)
            found = {
                path: (_largest(leaf, facts[path].scan_axes), jnp.all(jnp.isfinite(leaf)))
                for path, leaf in flatten(grads).items()
            }
            return loss, found

        return compiled(program)

    def gradients(self, state: TrainState) -> Gradients:
        """Returns the gradient of the batch at a state, in training mode."""
        loss, found = jax.device_get(self._gradients(state, self.batch))
        return Gradients(
            float(loss),
            {path: np.atleast_1d(largest) for path, (largest, _) in found.items()},
            {path: bool(finite) for path, (_, finite) in found.items()},
        )

    def perturbed(self, seed: int = 0) -> TrainState:
        """Returns the state with a little noise on every parameter, so that none is zero."""
        rng = np.random.default_rng(seed)

        def noisy(leaf: Any) -> Any:
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            size = 0.05 * max(float(jnp.sqrt(jnp.mean(jnp.abs(leaf) ** 2))), 0.1)
            return leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

        return self.state.replace(params=jax.tree.map(noisy, self.state.params))

    def outputs(self, *, hold: bool = False) -> tuple[Program, Seen]:
        """Returns a program from a batch to what the model returns for each row in training.

        It has the same random keys each time.

        Args:
            hold: whether BatchNorm uses its running statistics.

        Returns:
            The program, and what is known once it has run.
        """
        seen = Seen()

        def program(state: TrainState, batch: Batch) -> Any:
            with _watched(seen, hold):
                return row_outputs(self.recipe, state, batch, train=True)

        run = compiled(program)
        return lambda batch: [np.asarray(x) for x in run(self.state, batch)], seen

    @cached_property
    def _evaluated(self) -> Callable[..., Any]:
        return compiled(self.evaluation())

    def evaluation(self) -> Callable[..., Any]:
        """Returns a new function from state, batch and mask to metrics and outputs."""

        def program(state: TrainState, batch: Batch, mask: ArrayLike | None) -> Any:
            metrics = eval_step(self.recipe, state, batch, mask)
            outputs = row_outputs(self.recipe, state, batch, train=False)
            return {name: compute(metric) for name, metric in metrics.items()}, outputs

        return program

    def evaluated(self, batch: HostTree, mask: Any = None) -> tuple[Arrays, Arrays]:
        """Returns the metrics and the outputs of a batch in evaluation."""
        metrics, outputs = jax.device_get(self._evaluated(self.state, batch, mask))
        return [np.asarray(value) for value in jax.tree.leaves(metrics)], list(outputs)


Program = Callable[[HostTree], Arrays]


@dataclass
class Seen:
    """What was seen while a model ran: whether there was a BatchNorm in it."""

    batch_norm: bool = False


@contextmanager
def _watched(seen: Seen, hold: bool) -> Iterator[None]:
    forced = {"use_running_average": True} if hold else {}

    def look(call: MethodCall) -> Any:
        if isinstance(call.module, nn.BatchNorm):
            seen.batch_norm = True
            force_attributes(call.module, forced)
            call = forced_call(call, forced)
        return call.run()

    with intercepted(look):
        yield


def _largest(leaf: Any, layers: tuple[int, ...]) -> Any:
    axes = tuple(axis for axis in range(leaf.ndim) if axis not in layers[:1])
    return jnp.max(jnp.abs(leaf), axis=axes, initial=0.0)
