"""How the table of facts is made.

One abstract run of `init`, a second one for models with lifted axes, and one reading of the
training program.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxtrain.errors import ArgumentTypeError, FlaxtrainError, ModelError
from flaxtrain.params.axes import AxisBox, Shape, array_in, guess_axes, is_box, without
from flaxtrain.params.dataflow import FirstUse, first_uses
from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.params.kernel_axes import noting_axes
from flaxtrain.params.recorder import Declaration, Recorder, run_abstractly
from flaxtrain.params.roles import Evidence, is_matrix, makes_hidden, roles_of
from flaxtrain.params.stacks import guess_scan
from flaxtrain.text import kind_of
from flaxtrain.tree import Path, flatten, path_name, unflatten
from flaxtrain.typing import Key, PyTree

__all__ = ["facts_from", "param_facts"]

Initialise = Callable[[dict[str, Key]], Mapping[str, Any]]
Use = Callable[[dict[str, Any], Any], Any]
Roles = Mapping[str | Path, str]

# Where the program isn't read, every matrix passes for one between others.
_UNREAD = FirstUse(None, None, None, between=True)


def param_facts(
    model: nn.Module,
    *args: Any,
    rngs: Key | Mapping[str, Key] | None = None,
    method: Callable[..., Any] | str | None = None,
    roles: Roles | None = None,
    **kwargs: Any,
) -> Facts:
    """Returns the table of facts about a model's parameters; nothing is computed.

    `init` and `apply` are evaluated on shapes. Pass what you would pass to `init`, in
    *training* mode: a parameter that exists only with `train=True` has to be seen.

    Args:
        model: the Linen module, not bound.
        *args: inputs of the method: arrays, `jax.ShapeDtypeStruct`s, or trees of them. Any
            other value (a flag, a string) is passed on as it is.
        rngs: random keys by stream, or one key for `params`; streams that are not given use the
            key of `params`. Values don't matter.
        method: the method to run, `__call__` if None.
        roles: role by path tuple, name or glob, for parameters whose role is not what the
            evidence says. The first entry that matches decides; an entry without a match is an
            error.
        **kwargs: keyword inputs of the method.

    Returns:
        The facts, in the order of the params.

    Raises:
        ArgumentTypeError: `model` is no module (a class that wasn't called, say).
        ModelError: the model fails on these inputs, or has a parameter that is no array.
        ParameterError: an entry of `roles` matches no parameter.
        UnknownNameError: a role is unknown.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(1)])
        >>> facts = param_facts(model, jax.ShapeDtypeStruct((2, 3), jnp.float32))
        >>> for fact in facts.by_depth():
        ...     print(fact.name, fact.owner_name, fact.role, fact.shape)
        layers_0/kernel Dense kernel (3, 8)
        layers_0/bias Dense bias (8,)
        layers_1/scale LayerNorm norm_scale (8,)
        layers_1/bias LayerNorm norm_bias (8,)
        layers_2/kernel Dense kernel (8, 1)
        layers_2/bias Dense bias (1,)
    """
    if not isinstance(model, nn.Module):
        is_class = isinstance(model, type)
        found = f"the class {model.__name__}" if is_class else kind_of(model)
        raise ArgumentTypeError(
            f"model is {found}, not a Linen module",
            where="param_facts(model, ...)",
            fix=f"pass an instance: {model.__name__}(...)"
            if is_class
            else "pass a linen.Module",
        )
    inputs, rebuild = _split_inputs((args, kwargs))
    collections: dict[str, Any] = {}

    def keys() -> dict[str, Key]:
        given = rngs if isinstance(rngs, Mapping) else {} if rngs is None else {"params": rngs}
        return {"params": jax.random.key(0), **given}

    def initialise(extra: dict[str, Key]) -> Mapping[str, Any]:
        args, kwargs = rebuild([_zeros(leaf) for leaf in inputs])
        variables = model.init({**keys(), **extra}, *args, method=method, **kwargs)
        collections.update({name: tree for name, tree in variables.items() if name != "params"})
        collections.update(jax.tree.map(_shape_of, collections))
        return variables

    def use(params: dict[str, Any], data: list[Any]) -> Any:
        args, kwargs = rebuild(data)
        variables = {"params": params, **jax.tree.map(_zeros, collections)}
        mutable = list(collections) or False
        return model.apply(
            variables, *args, rngs=keys(), mutable=mutable, method=method, **kwargs
        )

    return facts_from(initialise, use, inputs, roles)


def facts_from(
    initialise: Initialise,
    use: Use | None = None,
    data: PyTree = None,
    roles: Roles | None = None,
) -> Facts:
    """Returns the table of facts from two functions; `param_facts` for those who own the calls.

    Args:
        initialise: `initialise(extra_rngs) -> variables` runs `model.init`, once or several
            times, with `{"params": key, **extra_rngs}`, in training mode. The table has what it
            returns: for parameters that exist in evaluation only, it has to run `init` in both
            modes and join the params.
        use: `use(params, data) -> outputs` runs `model.apply` in training mode. The outputs
            decide what counts as used: with the loss as output, a parameter that the loss
            doesn't depend on is dead. `params` are nested dicts without metadata boxes. Without
            it, `depth` and `uses` are None, and `hidden` goes by role and shape.
        data: what the activations depend on: arrays, shapes, or trees of them.
        roles: as for `param_facts`.

    Returns:
        The facts, in the order of the params.

    Raises:
        ModelError: the model fails, or has a parameter that is no array.
        ParameterError: an entry of `roles` matches no parameter.
        UnknownNameError: a role is unknown.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> model, x = nn.Dense(4), jnp.ones((1, 3))
        >>> rngs = {"params": jax.random.key(0)}
        >>> facts = facts_from(
        ...     lambda extra: model.init({**rngs, **extra}, x),
        ...     use=lambda params, x: model.apply({"params": params}, x),
        ...     data=x,
        ... )
        >>> facts["kernel"].depth, facts["bias"].depth
        (0, 1)
    """
    recorder = Recorder()
    with _explained("model.init"), noting_axes() as kernels:
        variables = run_abstractly(initialise, recorder)
    leaves = {path: _Leaf.of(path, value) for path, value in _flat(variables).items()}
    found = {path: _Found.of(path, leaf, recorder) for path, leaf in leaves.items()}
    lifted = {path for path, leaf in leaves.items() if found[path].local_shape != leaf.shape}
    axes = _lifted_axes(initialise, {path: found[path] for path in lifted}, leaves)
    beside: dict[Path, dict[str, Shape]] = {}
    for path, source in found.items():
        beside.setdefault(path[:-1], {})[path[-1]] = source.local_shape

    evidence = {
        path: found[path].evidence(path, leaf, recorder, beside[path[:-1]])
        for path, leaf in leaves.items()
    }
    verdicts = roles_of(evidence, roles)
    matrices = [at for at, path in enumerate(leaves) if makes_hidden(verdicts[path][0])]
    uses = _uses(use, data, leaves, matrices) if use is not None else {}

    def fact(path: Path) -> ParamFact:
        leaf, source = leaves[path], found[path]
        role, rule = verdicts[path]
        depth, count, scan, between = uses.get(path, _UNREAD)
        scan = guess_scan(path, axes.get(path, ())) if scan is None else scan
        return ParamFact(
            path=path,
            owner=source.owner,
            owner_path=source.owner_path,
            around=recorder.around(source.owner, source.owner_path),
            local_shape=source.local_shape,
            shape=leaf.shape,
            lifted_axes=axes.get(path, ()),
            dtype=leaf.dtype,
            partitioning=leaf.partitioning,
            role=role,
            rule=rule,
            depth=depth,
            uses=count,
            resolved=source.resolved,
            scan_axes=scan.axes,
            reversed_axes=scan.reversed_axes,
            loop=scan.loop,
            hidden=between and is_matrix(role, source.local_shape),
            kernel_axes=kernels.get(path),
        )

    collections = frozenset(variables) - {"params"}
    return Facts(tuple(map(fact, leaves)), frozenset(recorder.streams), collections)


class _Leaf(NamedTuple):
    """One array of the params."""

    shape: Shape
    dtype: np.dtype[Any]
    partitioning: tuple[Any, ...] | None

    @classmethod
    def of(cls, path: Path, value: Any) -> _Leaf:
        array = array_in(value)
        # A list of one array is a subtree of the params, not an array.
        is_subtree = array is not value and not is_box(value)
        if array is None or is_subtree or not all(isinstance(key, str) for key in path):
            raise ModelError(
                f"parameter {path_name(path)!r} is {kind_of(value)}, not an array",
                where="model.init",
                fix="declare each array with its own self.param, or return a dict of arrays",
            )
        names = getattr(value, "names", None) if is_box(value) else None
        return cls(tuple(array.shape), array.dtype, None if names is None else tuple(names))


class _Found(NamedTuple):
    """Where a parameter comes from."""

    owner: type[nn.Module] | None
    owner_path: Path
    local_shape: Shape
    declared: Path | None

    @classmethod
    def of(cls, path: Path, leaf: _Leaf, recorder: Recorder) -> _Found:
        for end in range(len(path), 0, -1):
            # An initialiser may return a dict: then the declared name is a prefix of the path.
            declaration: Declaration | None = recorder.declared.get(path[:end])
            if declaration is not None:
                local = declaration.shapes.get(path[end:], leaf.shape)
                return cls(declaration.owner, declaration.owner_path, local, path[:end])
        for end in range(len(path) - 1, -1, -1):
            if classes := recorder.modules.get(path[:end]):
                return cls(classes[-1], path[:end], leaf.shape, None)
        return cls(None, (), leaf.shape, None)

    @property
    def resolved(self) -> bool:
        return self.declared is not None

    def evidence(
        self, path: Path, leaf: _Leaf, recorder: Recorder, beside: Mapping[str, Shape]
    ) -> Evidence:
        around = recorder.modules.get(self.owner_path[:-1], ()) if self.owner_path else ()
        owner = self.owner if self.resolved else None
        return Evidence(path, owner, tuple(around), self.local_shape, leaf.dtype, beside)


def _lifted_axes(
    initialise: Initialise, found: Mapping[Path, _Found], leaves: Mapping[Path, _Leaf]
) -> dict[Path, Shape]:
    """Returns the lifted axes of the parameters in `found`, asking flax in a second run."""
    boxed = {source.declared for source in found.values() if source.declared is not None}
    values = _run_boxed(initialise, boxed) if boxed else {}
    axes = {}
    for path, source in found.items():
        shape, value = leaves[path].shape, values.get(path)
        told = tuple(sorted(value.axes)) if isinstance(value, AxisBox) else ()
        fits = without(shape, told) == source.local_shape
        axes[path] = told if fits else guess_axes(source.local_shape, shape)
    return axes


def _run_boxed(initialise: Initialise, boxed: Collection[Path]) -> dict[Path, Any]:
    recorder = Recorder(boxed)
    try:
        return _flat(run_abstractly(initialise, recorder))
    except Exception:
        # The model ran without boxes, so it is the boxes that some code in it can't handle (it
        # reads params from the scope, say). The axes are then guessed from the shapes.
        return {}


def _uses(
    use: Use, data: PyTree, leaves: Mapping[Path, _Leaf], matrices: Collection[int]
) -> dict[Path, FirstUse]:
    inputs, rebuild = _split_inputs(data)

    def program(params: list[Any], data: list[Any]) -> Any:
        with _explained("model.apply in training mode"):
            return use(unflatten(dict(zip(leaves, params, strict=True))), rebuild(data))

    params = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves.values()]
    return dict(zip(leaves, first_uses(program, params, inputs, matrices), strict=True))


def _flat(variables: Mapping[str, Any]) -> dict[Path, Any]:
    return flatten(variables.get("params", {}))


def _split_inputs(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Returns the shapes of the arrays in `tree`, and a function that puts arrays there."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [index for index, leaf in enumerate(leaves) if hasattr(leaf, "dtype")]

    def rebuild(arrays: list[Any]) -> Any:
        filled = list(leaves)
        for index, array in zip(places, arrays, strict=True):
            filled[index] = array
        return jax.tree.unflatten(treedef, filled)

    return [_shape_of(leaves[index]) for index in places], rebuild


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    )


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return (
            jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else jax.random.key(0)
        )
    return jnp.zeros(leaf.shape, leaf.dtype)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns whatever the model raises into a `ModelError` that says which run it was."""
    try:
        yield
    except FlaxtrainError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise ModelError(
            f"{what} fails: {type(error).__name__}: {lines[0][:200]}",
            where="reading the facts about the parameters",
            fix="call it yourself with the same inputs: the shapes and flags of training",
        ) from error
