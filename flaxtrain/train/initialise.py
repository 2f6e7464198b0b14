"""Making variables: the loss function is run once on a model that initialises itself.

So parameters are created by the very calls that training will make, whatever method they use
and whatever the loss function does to the batch first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax.core import meta, unfreeze

from flaxtrain.train.model import BoundModel, with_train_flag
from flaxtrain.typing import Key

__all__ = ["InitialisingModel"]


class InitialisingModel(BoundModel):
    """Looks like a `BoundModel` in training; each call runs the module's `init`.

    Args:
        module: the Linen module.
        rngs: the keys by stream; `"params"` must be among them.

    Attributes:
        variables: what the calls so far have created, `{"params": ..., "batch_stats": ...}`,
            with flax's partitioning boxes still around the values.
        sown_collections: names of the collections that the calls sowed into; they are not
            state.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = InitialisingModel(nn.Dense(2), {"params": jax.random.key(0)})
        >>> model(jnp.ones((4, 3))).shape, model.variables["params"]["kernel"].shape
        ((4, 2), (3, 2))
    """

    def __init__(self, module: nn.Module, rngs: Mapping[str, Key]) -> None:
        super().__init__(module, {}, rng=rngs["params"], train=True)
        self._init_rngs = dict(rngs)
        self.variables: dict[str, Any] = {}
        self.sown_collections: set[str] = set()

    def __call__(self, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """Initialises what this call needs and returns its output."""
        kwargs = with_train_flag(self.module, True, method, args, kwargs)
        with nn.intercept_methods(self._note_sown):
            output, created = self.module.init_with_output(
                self._init_rngs, *args, method=method, **kwargs
            )
        created = unfreeze(created)
        self.sown = {k: v for k, v in created.items() if k in self.sown_collections}
        created = {k: v for k, v in created.items() if k not in self.sown_collections}
        self.variables = _merged(self.variables, created)
        plain = meta.unbox(self.variables)
        self.params = plain.get("params", {})
        self.collections = {name: tree for name, tree in plain.items() if name != "params"}
        return output

    def _note_sown(
        self,
        following: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Any,
    ) -> Any:
        """Gives each module that runs a `sow` of its own that notes the collection's name."""
        module = context.module
        if module.scope is not None and "sow" not in module.__dict__:
            sow = module.sow

            def noted(col: str, name: str, value: Any, *args: Any, **kwargs: Any) -> bool:
                self.sown_collections.add(col)
                return sow(col, name, value, *args, **kwargs)

            object.__setattr__(module, "sow", noted)
        return following(*args, **kwargs)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested dicts; where both have a leaf, the first stays."""
    merged = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else merged.get(key, value)
    return merged
