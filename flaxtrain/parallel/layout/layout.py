"""Where every array of a training state lies on a mesh."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from flaxtrain.errors import ArgumentError
from flaxtrain.parallel.layout.leaves import Role, role_of
from flaxtrain.parallel.layout.param_rules import Chosen, by_names, by_rule, rules_by_path
from flaxtrain.parallel.layout.slots import Owner, slot_splits
from flaxtrain.parallel.layout.splits import (
    BY_RULE,
    AutomaticSplit,
    AxisSplits,
    Shape,
    partition_spec,
    unsplit,
    used,
)
from flaxtrain.parallel.layout.table import (
    LayoutTable,
    PlacedLeaf,
    on_one_device,
    rows_of,
    sums_of,
)
from flaxtrain.parallel.mesh import AnyMesh, batch_axes, check_mesh
from flaxtrain.parallel.sharding import Sharding
from flaxtrain.params import Facts
from flaxtrain.tree import Path, nbytes
from flaxtrain.typing import PyTree

__all__ = ["Layout"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where every array of a training state lies: what the sharding makes of a model on a mesh.

    Nothing is allocated, and the mesh may be an abstract one.

    Attributes:
        mesh: the mesh.
        sharding: what is split.
        facts: the parameters.

    Raises:
        ArgumentError: the mesh has neither an axis `data` nor `fsdp`, and the kind splits over
            these; an axis of it is not of type `Auto`; or two axes of a parameter are to be
            split over the same mesh axis.
        ParameterError: a rule selects nothing, or does not fit a parameter.
        UnknownNameError: the mesh has no axis of a name.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.parallel import abstract_mesh
        >>> from flaxtrain.params import param_facts
        >>> facts = param_facts(nn.Dense(512), jnp.ones((1, 256)))
        >>> layout = Layout(abstract_mesh({"data": 2, "fsdp": 4}, 8), Sharding("fsdp"), facts)
        >>> list(layout.params["kernel",]), layout.left_whole
        ([None, 'fsdp'], {('bias',): 'below the threshold'})
    """

    mesh: AnyMesh
    sharding: Sharding
    facts: Facts

    def __post_init__(self) -> None:
        check_mesh(self.mesh, where="Layout(mesh)")
        names = batch_axes(self.mesh)
        if self.sharding.kind != "replicated" and not names:
            raise ArgumentError(
                f"a mesh of the axes {', '.join(map(repr, self.mesh.shape))}",
                where=f"sharding={self.sharding.kind!r}",
                fix='add an axis "data" or "fsdp" to the mesh, or use "replicated" with rules',
            )
        _ = self._slots  # every error at once, not with the first state

    @functools.cached_property
    def params(self) -> dict[Path, PartitionSpec]:
        """What each parameter is split over."""
        return {path: self._spec(splits) for path, splits in self._params.items()}

    @functools.cached_property
    def slots(self) -> dict[Path, PartitionSpec]:
        """What the slots of each parameter's shape are split over."""
        return {path: self._spec(splits) for path, splits in self._slots.items()}

    @functools.cached_property
    def left_whole(self) -> dict[Path, str]:
        """The parameters that stay whole, or their slots, though the kind splits; and why."""
        reasons = {
            path: BY_RULE
            if self._is_left_whole(path) and self._split.others(())
            else self._split.reason(fact.shape, self._named[path])
            for path, fact in self.facts.items()
        }
        return {path: reason for path, reason in reasons.items() if reason}

    def state(self, tree: PyTree) -> PyTree:
        """Returns the sharding of each leaf.

        Args:
            tree: a training state, params, or anything that has parts of these in it; arrays or
                their shapes. Leaves whose path ends with a parameter's, below `params` or at
                the root, are parameters. All others whose path contains one are its slots.

        Returns:
            The tree with a `NamedSharding` at each leaf.
        """

        def sharding(keys: Sequence[Any], leaf: Any) -> NamedSharding:
            role = role_of(keys, self.facts)
            return self._sharding(self._splits(role, np.shape(leaf)))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def batch(self, *, stacked: bool = False) -> NamedSharding:
        """Returns the sharding of the arrays of a batch: rows over `data` and `fsdp`.

        Args:
            stacked: whether the arrays are `[batches, rows, ...]`, not `[rows, ...]`.
        """
        names = batch_axes(self.mesh)
        return self._sharding(((), names) if stacked else (names,))

    @functools.cached_property
    def splits_like_rows(self) -> bool:
        """Whether a parameter is split over a mesh axis that rows are spread over as well."""
        batch = {name for name in batch_axes(self.mesh) if self.mesh.shape[name] > 1}
        return any(not batch.isdisjoint(used(splits)) for splits in self._params.values())

    def describe(self, state: PyTree) -> LayoutTable:
        """Returns the memory that each parameter and its slots take on one device.

        Args:
            state: a training state, or its shapes.

        Example:
            >>> import flax.linen as nn, jax.numpy as jnp
            >>> from flaxtrain.parallel import abstract_mesh
            >>> from flaxtrain.params import param_facts
            >>> facts = param_facts(nn.Dense(512), jnp.ones((1, 256)))
            >>> layout = Layout(abstract_mesh({"data": 4}, 4), Sharding("zero1"), facts)
            >>> mu = facts.tree(lambda fact: jax.ShapeDtypeStruct(fact.shape, fact.dtype))
            >>> table = layout.describe({"params": mu, "slots": {"mu": mu}})
            >>> table.rows[1].name, table.rows[1].param_bytes, table.rows[1].slot_bytes
            ('kernel', 524288, 131072)
        """
        leaves = [
            self._placed(keys, leaf)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(state)
        ]
        kinds = ("params", "slots") if self._splits_params else ("slots",)
        return LayoutTable(
            rows_of(leaves, self.params, self.slots, self.left_whole),
            *sums_of(leaves, kinds, self._split.others(())),
        )

    @functools.cached_property
    def _ruled(self) -> dict[Path, Chosen]:
        return rules_by_path(self.sharding, self.facts)

    @functools.cached_property
    def _named(self) -> dict[Path, AxisSplits]:
        """What rules and names of axes say, the former first."""
        return {
            path: by_rule(self.mesh, fact, self._ruled[path])
            if path in self._ruled
            else by_names(self.mesh, self.sharding, fact)
            for path, fact in self.facts.items()
        }

    def _is_left_whole(self, path: Path) -> bool:
        return path in self._ruled and not self._ruled[path].axes

    @functools.cached_property
    def _split(self) -> AutomaticSplit:
        """The automatic rule, as it is for slots."""
        names = batch_axes(self.mesh)
        fsdp = ("fsdp",) if "fsdp" in names else names
        by_kind = {"replicated": (), "zero1": names, "fsdp": fsdp}
        return AutomaticSplit(self.mesh, by_kind[self.sharding.kind], self.sharding.min_size)

    @functools.cached_property
    def _splits_params(self) -> bool:
        return self.sharding.kind == "fsdp"

    @functools.cached_property
    def _slots(self) -> dict[Path, AxisSplits]:
        def splits(path: Path) -> AxisSplits:
            fact, named = self.facts[path], self._named[path]
            layers = {*fact.scan_axes, *fact.lifted_axes}
            split = self._split(fact.shape, named, layers)
            return named if self._is_left_whole(path) else split

        return {path: splits(path) for path in self.facts}

    @property
    def _params(self) -> dict[Path, AxisSplits]:
        return self._slots if self._splits_params else self._named

    def _spec(self, splits: AxisSplits) -> PartitionSpec:
        return partition_spec(self.mesh, splits)

    def _sharding(self, splits: AxisSplits) -> NamedSharding:
        return NamedSharding(self.mesh, self._spec(splits))

    def _placed(self, keys: Sequence[Any], leaf: Any) -> PlacedLeaf:
        """Returns what one leaf is, where it lies, and its bytes."""
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        role = role_of(keys, self.facts)
        splits = self._splits(role, array.shape)
        part = on_one_device(array, self._sharding(splits))
        sizes = nbytes(part), nbytes(array)
        return PlacedLeaf(role.path, role.kind, array.shape, *sizes, splits)

    def _splits(self, role: Role, shape: Shape) -> AxisSplits:
        """Returns how one leaf is split."""
        path = role.path
        if role.kind == "other":
            return unsplit(shape)
        if role.kind == "params" and path is not None:
            return self._params[path] if shape == self.facts[path].shape else unsplit(shape)
        if role.kind == "params" and not self._splits_params:
            return unsplit(shape)
        if path is None:
            return slot_splits(shape, Owner((), ()), self._split)
        owner = Owner(self.facts[path].shape, self._slots[path], role.item)
        return slot_splits(shape, owner, self._split)
