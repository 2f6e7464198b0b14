"""Doors for users of other libraries: `from flaxtrain.compat import optax`."""

from flaxtrain.compat import optax

__all__ = ["optax"]
