"""Where functions are compiled and batches placed: `jit` and donation happen here only."""

from flaxtrain.parallel.compile import Compiled, compiled
from flaxtrain.parallel.place import place

__all__ = ["Compiled", "compiled", "place"]
