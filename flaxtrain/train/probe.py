"""What a run will do, found out by abstract evaluation: shapes and structure, no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from flaxtrain.errors import FlaxtrainError
from flaxtrain.params import Facts, facts_from
from flaxtrain.train.contract import LossFn, LossOutput, call_loss, run_loss
from flaxtrain.train.dependencies import primitives
from flaxtrain.train.initialise import InitialisingModel
from flaxtrain.train.model import BoundModel
from flaxtrain.train.rows import Rows
from flaxtrain.typing import Array, Batch, Key, Params

__all__ = ["Probe"]


class _Found(NamedTuple):
    """What the first abstract run has shown.

    `variables` are shapes and dtypes, `sown` the names of collections that are sown; `adds` is
    whether some variables are created in evaluation only, `evaluation_error` the error that the
    run in evaluation ends with.
    """

    variables: dict[str, Any]
    sown: tuple[str, ...]
    adds: bool
    evaluation_error: str | None


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
        """Runs the loss function on a model that initialises itself, and returns that model.

        It runs in training, and then in evaluation too if that creates anything new: the values
        of what training creates are the same either way.
        """
        return self._run({"params": key, **(extra_rngs or {})}, self._found.adds)

    def _run(self, rngs: Mapping[str, Key], adds: bool) -> InitialisingModel:
        model = InitialisingModel(self.module, rngs)
        run_loss(self.loss_fn, model, _zeros(self.example))
        return self._evaluated(model)[0] if adds else model

    def _evaluated(self, trained: InitialisingModel) -> tuple[InitialisingModel, str | None]:
        """Returns the model after a run in evaluation, and the error that ended the run.

        A loss function may be for training only, and a model may be broken in evaluation. That
        is no fault before somebody evaluates, who then meets the same error or is told of it.
        What calls have created up to there stays: `predict` needs no loss function.
        """
        model = trained.evaluation()
        try:
            run_loss(self.loss_fn, model, _zeros(self.example))
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            return model, f"{type(error).__name__}: {first[:200]}"
        return model, None

    def returned(self) -> Any:
        """Returns what the loss function returns, as shapes and dtypes."""
        return jax.eval_shape(
            lambda: self.loss_fn(
                InitialisingModel(self.module, {"params": jax.random.key(0)}),
                _zeros(self.example),
            )
        )

    @cached_property
    def _found(self) -> _Found:
        sown: set[str] = set()
        adds, evaluation_error = False, None

        def variables() -> dict[str, Any]:
            nonlocal adds, evaluation_error
            model = self._run({"params": jax.random.key(0)}, adds=False)
            sown.update(model.sown_collections)
            # Python code of models is slow to trace: nobody who asked, nothing to look for.
            if not model.asked_for_mode:
                return meta.unbox(model.variables)
            both, evaluation_error = self._evaluated(model)
            # Sown in evaluation and kept in training, it is state.
            sown.update(both.sown_collections - model.variables.keys())
            adds = jax.tree.structure(both.variables) != jax.tree.structure(model.variables)
            return meta.unbox(both.variables)

        return _Found(jax.eval_shape(variables), tuple(sorted(sown)), adds, evaluation_error)

    @property
    def sown(self) -> tuple[str, ...]:
        """Names of the collections that the module sows."""
        return self._found.sown

    @property
    def evaluation_error(self) -> str | None:
        """Why variables of evaluation may not have been made; None where all were."""
        return self._found.evaluation_error

    def facts(self) -> Facts:
        """Returns the table of parameters, with those that only evaluation uses.

        The loss in training doesn't depend on the latter: their `uses` are 0.
        """
        try:
            adds = self._found.adds  # before anything is recorded: that run isn't to be noted
        except Exception:
            adds = False  # the run below fails as well, and its errors are explained
        return facts_from(
            lambda extra: self._run({"params": jax.random.key(0), **extra}, adds).variables,
            self._train,
            self.example,
        )

    def initialise(self, extra_rngs: Mapping[str, Key]) -> dict[str, Any]:
        """Returns the variables that a run of the loss function creates."""
        return self.run_init(jax.random.key(0), extra_rngs).variables

    def padding_problem(self) -> FlaxtrainError | None:
        """Returns the error that a batch with padding rows would raise, or None.

        Raises:
            FlaxtrainError: the loss function breaks the contract even for a full batch.
        """
        params = self._found.variables.get("params", {})
        jax.eval_shape(self._train, params, self.example)
        mask = jax.ShapeDtypeStruct((jax.tree.leaves(self.example)[0].shape[0],), jnp.bool_)
        try:
            jax.eval_shape(self._train, params, self.example, mask)
        except FlaxtrainError as error:
            return error.with_traceback(None)
        return None

    @cached_property
    def terms(self) -> int:
        """The number of terms of the loss."""
        params = self._found.variables.get("params", {})
        return len(jax.eval_shape(self._train, params, self.example).loss.terms)

    @cached_property
    def has_convolutions(self) -> bool:
        """Whether the loss function runs a convolution."""
        params = self._found.variables.get("params", {})
        closed = jax.make_jaxpr(self._train)(params, self.example)
        return "conv_general_dilated" in primitives(closed)

    def _train(self, params: Params, batch: Batch, mask: Array | None = None) -> LossOutput:
        variables = self._found.variables
        collections = {
            name: _zeros(tree) for name, tree in variables.items() if name != "params"
        }
        rows = Rows.of(batch, mask)
        model = BoundModel(
            self.module,
            params,
            collections,
            rng=jax.random.key(0),
            streams=("params",),  # any stream that is not given falls back to this one
            train=True,
            mask=rows.real,
            weight=rows.weight,
            sown=self.sown,
        )
        return call_loss(self.loss_fn, model, rows.batch)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
