"""What a run will do, found out by abstract evaluation: shapes and structure, no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from flaxtrain.errors import FlaxtrainError
from flaxtrain.params import Facts, facts_from
from flaxtrain.train.contract import LossFn, LossOutput, call_loss, run_loss
from flaxtrain.train.initialise import InitialisingModel
from flaxtrain.train.model import BoundModel
from flaxtrain.train.rows import row_weights
from flaxtrain.typing import Array, Batch, Key, Params

__all__ = ["Probe"]


@dataclass(frozen=True)
class Probe:
    """Runs a loss function abstractly on a module.

    Args:
        module: the Linen module.
        loss_fn: the loss function.
        example: shapes and dtypes of one batch.
    """

    module: nn.Module
    loss_fn: LossFn
    example: Batch

    def run_init(
        self, key: Key, extra_rngs: Mapping[str, Key] | None = None
    ) -> InitialisingModel:
        """Runs the loss function on a model that initialises itself, and returns that model."""
        model = InitialisingModel(self.module, {"params": key, **(extra_rngs or {})})
        run_loss(self.loss_fn, model, _zeros(self.example))
        return model

    def returned(self) -> Any:
        """Returns what the loss function returns, as shapes and dtypes."""
        return jax.eval_shape(
            lambda: self.loss_fn(
                InitialisingModel(self.module, {"params": jax.random.key(0)}),
                _zeros(self.example),
            )
        )

    @cached_property
    def _abstract(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        sown: set[str] = set()

        def variables() -> dict[str, Any]:
            model = self.run_init(jax.random.key(0))
            sown.update(model.sown_collections)
            return meta.unbox(model.variables)

        return jax.eval_shape(variables), tuple(sorted(sown))

    @property
    def sown(self) -> tuple[str, ...]:
        """Names of the collections that the module sows."""
        return self._abstract[1]

    def facts(self) -> Facts:
        """Returns the table of parameters."""
        return facts_from(self.initialise, self._train, self.example)

    def initialise(self, extra_rngs: Mapping[str, Key]) -> dict[str, Any]:
        """Returns the variables that a run of the loss function creates."""
        return self.run_init(jax.random.key(0), extra_rngs).variables

    def padding_problem(self) -> FlaxtrainError | None:
        """Returns the error that a batch with padding rows would raise, or None.

        Raises:
            FlaxtrainError: the loss function breaks the contract even for a full batch.
        """
        params = self._abstract[0].get("params", {})
        jax.eval_shape(self._train, params, self.example)
        mask = jax.ShapeDtypeStruct((jax.tree.leaves(self.example)[0].shape[0],), jnp.bool_)
        try:
            jax.eval_shape(self._train, params, self.example, mask)
        except FlaxtrainError as error:
            return error.with_traceback(None)
        return None

    def _train(self, params: Params, batch: Batch, mask: Array | None = None) -> LossOutput:
        variables, sown = self._abstract
        collections = {
            name: _zeros(tree) for name, tree in variables.items() if name != "params"
        }
        batch, real_rows, weight = row_weights(batch, mask)
        model = BoundModel(
            self.module,
            params,
            collections,
            rng=jax.random.key(0),
            streams=("params",),  # any stream that is not given falls back to this one
            train=True,
            mask=real_rows,
            weight=weight,
            sown=sown,
        )
        return call_loss(self.loss_fn, model, batch)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
