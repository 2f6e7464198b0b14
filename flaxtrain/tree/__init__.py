"""Trees of arrays: names of leaves, splitting, arithmetic."""

from flaxtrain.tree.arithmetic import all_finite, global_norm, widened
from flaxtrain.tree.paths import Path, flatten, key_of, named_leaves, path_name, unflatten
from flaxtrain.tree.prune import graft, split

__all__ = [
    "Path",
    "all_finite",
    "flatten",
    "global_norm",
    "graft",
    "key_of",
    "named_leaves",
    "path_name",
    "split",
    "unflatten",
    "widened",
]
