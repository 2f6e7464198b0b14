"""Making variables: the loss function is run once on a model that initialises itself.

So parameters are created by the very calls that training will make, whatever method they use
and whatever the loss function does to the batch first. Those that only evaluation asks for are
created by a second run (`InitialisingModel.evaluation`), beside what training has created.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.core import meta, unfreeze

from flaxtrain.params.intercept import MethodCall, intercepted_under_jit
from flaxtrain.train.model import BoundModel, with_train_flag
from flaxtrain.typing import Key

__all__ = ["InitialisingModel"]


class InitialisingModel(BoundModel):
    """Looks like a `BoundModel`; each call runs the module's `init`.

    Args:
        module: the Linen module.
        rngs: the keys by stream; `"params"` must be among them.
        train: whether this is training.

    Attributes:
        variables: what the calls so far have created, `{"params": ..., "batch_stats": ...}`,
            with flax's partitioning boxes still around the values.
        sown_collections: names of the collections that the calls sowed into; they are not
            state.
        asked_for_mode: whether the loss function has read `train`, or a call has been given a
            train flag. If not, a run in evaluation is the same run.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = InitialisingModel(nn.Dense(2), {"params": jax.random.key(0)})
        >>> model(jnp.ones((4, 3))).shape, model.variables["params"]["kernel"].shape
        ((4, 2), (3, 2))
    """

    def __init__(
        self, module: nn.Module, rngs: Mapping[str, Key], *, train: bool = True
    ) -> None:
        super().__init__(module, {}, rng=rngs["params"], train=train)
        self._init_rngs = dict(rngs)
        self.variables: dict[str, Any] = {}
        self.sown_collections: set[str] = set()
        self.asked_for_mode = False

    @property
    def train(self) -> bool:
        """Whether this is training; that it was asked for is noted."""
        self.asked_for_mode = True
        return self._train

    def evaluation(self) -> InitialisingModel:
        """Returns a model in evaluation that has these variables; its calls add to them.

        A value that is there already stays. One that is added is what `init` alone makes it in
        evaluation: it doesn't depend on what training has created.
        """
        model = InitialisingModel(self.module, self._init_rngs, train=False)
        model._add(self.variables)
        return model

    def __call__(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Initialises what this call needs and returns its output."""
        flagged = with_train_flag(self.module, self._train, method, args, kwargs)
        self.asked_for_mode = self.asked_for_mode or flagged.keys() != kwargs.keys()
        with intercepted_under_jit(self._note_sown, self._init_rngs) as streams:
            output, created = self.module.init_with_output(
                {**self._init_rngs, **streams}, *args, method=method, **flagged
            )
        created = unfreeze(created)
        self.sown = {k: v for k, v in created.items() if k in self.sown_collections}
        self._add({k: v for k, v in created.items() if k not in self.sown_collections})
        return output

    def _add(self, created: Mapping[str, Any]) -> None:
        self.variables = _merged(self.variables, created)
        plain = meta.unbox(self.variables)
        self.params = plain.get("params", {})
        self.collections = {name: tree for name, tree in plain.items() if name != "params"}

    def _note_sown(self, call: MethodCall) -> Any:
        """Gives each module that runs a `sow` of its own that notes the collection's name."""
        if "sow" not in vars(call.module):
            sow = call.module.sow

            def noted(col: str, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
                self.sown_collections.add(col)
                return sow(col, name, value, *args, **kwargs)

            object.__setattr__(call.module, "sow", noted)
        return call.run()


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested dicts; where both have a leaf, the first stays."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else merged.get(key, value)
    return merged
