"""The model as a loss function sees it: a Linen module bound to everything a call needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from flax.errors import (
    InvalidRngError,
    ModifyScopeVariableError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
    ScopeVariableNotFoundError,
)

from flaxtrain.errors import ModelError
from flaxtrain.train.casting import AS_WRITTEN, Casts
from flaxtrain.train.flags import TRAIN_FLAGS
from flaxtrain.train.frozen_calls import AS_THEY_COME, Calls
from flaxtrain.train.frozen_modules import NOTHING_FROZEN, FrozenModules
from flaxtrain.train.keys import stream_key
from flaxtrain.train.replicas import ONE_PROGRAM, Replicas
from flaxtrain.train.row_mask import row_mask
from flaxtrain.typing import Array, Collections, Key, Params

__all__ = ["BoundModel", "call_arguments"]


def call_arguments(module: nn.Module, method: str = "__call__") -> tuple[str, ...]:
    """Returns the names of the data arguments of a module's method: no `self`, no train flag.

    Raises:
        ModelError: the module has no such method.

    Example:
        >>> call_arguments(nn.Dense(3)), call_arguments(nn.Dropout(0.1))
        (('inputs',), ('inputs', 'rng'))
    """
    return tuple(
        name for name in _signature(module, method).parameters if name not in TRAIN_FLAGS
    )


def _signature(module: nn.Module, method: str) -> inspect.Signature:
    function = getattr(module, method, None)
    if not callable(function):
        raise ModelError(
            f"{type(module).__name__} has no method {method!r}", where="model(..., method=...)"
        )
    return inspect.signature(function)


class BoundModel:
    """A Linen module bound to its variables, rngs, train flag and row mask.

    Call it like the module itself, without the train flag: `model(batch["image"])`, or
    `model(z, method="decode")`. Mutable collections are updated from call to call.

    Args:
        module: the Linen module.
        params: its whole tree of parameters.
        collections: its mutable collections.
        rng: key of the step or the microbatch; None when nothing random may be drawn.
        streams: names of the rng streams that the module draws from.
        train: whether this is training.
        mask: bool `[rows]`, the rows that count; None when all do.
        weight: float `[rows]`, the weight of each row; None when all are 1.
        sown: collections that the module sows afresh in each call.
        frozen: the frozen modules, which run as in evaluation.
        evaluation_error: why not all variables of evaluation were made; None where they were.
        casts: the dtypes in which the model runs.
        replicas: which have the other rows of the batch.

    Attributes:
        mask: see above. Give it to every `Mean` of your own: `Mean.of(values, model.mask)`.
        weight: see above; `mask` times the weights that came with the batch.
        collections: the mutable collections after the calls so far.
        sown: what the module sowed in the last call, by collection: auxiliary losses and the
            like.
        frozen_calls: what becomes of the calls of modules, such as frozen ones.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Params,
        collections: Collections | None = None,
        *,
        rng: Key | None = None,
        streams: tuple[str, ...] = (),
        train: bool = False,
        mask: Array | None = None,
        weight: Array | None = None,
        sown: tuple[str, ...] = (),
        frozen: FrozenModules = NOTHING_FROZEN,
        evaluation_error: str | None = None,
        casts: Casts = AS_WRITTEN,
        replicas: Replicas = ONE_PROGRAM,
    ) -> None:
        self.module, self.params = module, params
        self.collections: dict[str, Any] = dict(collections or {})
        self._train, self.mask, self.weight = train, mask, weight
        self.sown: dict[str, Any] = {}
        self.frozen_calls: Calls = AS_THEY_COME
        self._rng, self._streams = rng, streams
        self._sown_names, self._frozen = sown, frozen if train else NOTHING_FROZEN
        self._calls, self._evaluation_error = 0, evaluation_error
        self._casts, self._replicas = casts, replicas

    @property
    def train(self) -> bool:
        """Whether this is training."""
        return self._train

    def __call__(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Applies the module, or one of its methods, and returns its output.

        Raises:
            ModelError: the module draws random numbers or writes to variables in evaluation,
                asks for variables that were not made or have another shape, or BatchNorm meets
                rows that the row mask does not fit.
        """
        kwargs = with_train_flag(self.module, self.train, method, args, kwargs)
        index, self._calls = self._calls, self._calls + 1
        mutable = [*(self.collections if self.train else ()), *self._sown_names]
        rngs = self.rngs(index) if self.train else {}
        args, kwargs = self._casts.inputs((args, kwargs))
        with (
            self._casts.applied(rngs) as cast_rngs,
            self._frozen.applied(rngs) as frozen_rngs,
            self.frozen_calls.applied(self._frozen, rngs) as call_rngs,
            row_mask(self.mask, rngs) as extra_rngs,
            self._replicas.model_context(rngs) as replica_rngs,
            _explained(self.module, self.train, self._evaluation_error),
        ):
            output = self.module.apply(
                {"params": self._casts.params(self.params), **self.collections},
                *args,
                rngs={
                    **rngs,
                    **cast_rngs,
                    **frozen_rngs,
                    **call_rngs,
                    **extra_rngs,
                    **replica_rngs,
                },
                mutable=mutable or False,
                method=method,
                **kwargs,
            )
        if mutable:
            output, changed = output
            self.sown = {
                name: self._casts.outputs(changed.pop(name))
                for name in self._sown_names
                if name in changed
            }
            stored = {name: self.collections[name] for name in changed}
            changed = jax.tree.map(_as_stored, dict(changed), stored)
            self.collections |= self._frozen.held(changed, self.collections)
        return self._casts.outputs(output)

    def rngs(self, index: int = 0) -> dict[str, Key]:
        """Returns the keys of all streams for the call number `index` of this step."""
        if self._rng is None:
            return {}
        return {name: stream_key(self._rng, name, index) for name in self._streams}

    def rng(self, stream: str) -> Key:
        """Returns a key for the loss function itself, such as for data augmentation.

        Raises:
            ModelError: there is no randomness here (evaluation).
        """
        if self._rng is None or not self._train:
            raise ModelError(
                f"rng stream {stream!r} was asked for in evaluation",
                where="model.rng",
                fix="ask only when model.train is true",
            )
        return stream_key(self._rng, f"loss/{stream}")


def with_train_flag(
    module: nn.Module,
    train: bool,
    method: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns `kwargs` with the train flags that the method knows and the caller left open."""
    signature = _signature(module, method)
    flags = [
        name for name in TRAIN_FLAGS if name in signature.parameters and name not in kwargs
    ]
    if not flags:
        return dict(kwargs)
    taken = signature.bind_partial(*args).arguments
    return {
        **{name: TRAIN_FLAGS[name] == train for name in flags if name not in taken},
        **kwargs,
    }


def _as_stored(new: Array, old: Array) -> Array:
    """Keeps the dtype in which a collection is stored: BatchNorm returns float64 under x64."""
    return new.astype(old.dtype)


_NOT_MADE = (ScopeParamNotFoundError, ScopeCollectionNotFound, ScopeVariableNotFoundError)


@contextmanager
def _explained(module: nn.Module, train: bool, evaluation_error: str | None) -> Iterator[None]:
    try:
        yield
    except ScopeParamShapeError as error:
        raise ModelError(
            f"the parameters don't fit this call: {_without_link(error)}",
            where=f"{type(module).__name__}.__call__",
            fix="give inputs with the shapes of the training data, except for the batch axis",
        ) from error
    except _NOT_MADE as error:
        reason = (
            ""
            if evaluation_error is None
            else f"; the run in evaluation fails with {evaluation_error}"
        )
        raise ModelError(
            f"this call asks for a variable that was not made: {_without_link(error)}{reason}",
            where=f"{type(module).__name__}.__call__",
            fix="variables are made by the calls of the loss function, in training and in "
            "evaluation (model.train): let it make this call, too, in a run without errors",
        ) from error
    except ModifyScopeVariableError as error:
        if train:
            raise
        raise ModelError(
            f"the model writes to a variable in evaluation: {_without_link(error)}",
            where=f"{type(module).__name__}.__call__",
            fix="evaluation changes nothing: write only when the train flag is true",
        ) from error
    except InvalidRngError as error:
        if train:
            raise
        flags = ", ".join(TRAIN_FLAGS)
        raise ModelError(
            f"the model draws random numbers in evaluation ({_without_link(error)})",
            where=f"{type(module).__name__}.__call__",
            fix=f"give it one of the arguments {flags} and pass it on to nn.Dropout",
        ) from error


def _without_link(error: Exception) -> str:
    """Returns the message without flax's pointer to its documentation."""
    return str(error).split(" (https://")[0].rstrip(".")
