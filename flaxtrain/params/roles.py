"""What a parameter is for: its role, from the best evidence there is.

Evidence in order: what the user says; the class of the module that declares the parameter; the
parameter's name; the rank of its local shape without axes of size 1. The rank decides only for
modules of classes flaxtrain doesn't know (a `Dense` kernel of shape `(8, 1)` stays a kernel),
and it has to be the local shape: under `nn.scan` a norm scale has two axes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.recurrent import DenseParams, RNNCellBase

from flaxtrain.errors import ArgumentTypeError, ParameterError, nearest, unknown_name
from flaxtrain.tree import Path, path_name

__all__ = ["ROLES"]

ROLES = (
    "kernel",
    "bias",
    "norm_scale",
    "norm_bias",
    "embedding",
    "pos_embedding",
    "token",
    "gain",
    "recurrent",
    "scalar",
    "other",
)
"""Every role: what is multiplied with activations (`kernel`; `recurrent` from hidden state to
hidden state), what is added (`bias`), what norms own (`norm_scale`, `norm_bias`), tables of
vectors (`embedding`, `pos_embedding`), learned inputs (`token`: cls token, latents, prompts),
factors per channel outside of norms (`gain`), single numbers (`scalar`), and the rest
(`other`)."""

Verdict = tuple[str, str]

_LINEAR = {"kernel": "kernel", "bias": "bias"}
_NORM = {"scale": "norm_scale", "bias": "norm_bias"}
_OWNERS: tuple[tuple[type[nn.Module], dict[str, str]], ...] = (
    (nn.Dense, _LINEAR),
    (nn.DenseGeneral, _LINEAR),
    (nn.Einsum, _LINEAR),
    (nn.Conv, _LINEAR),
    (nn.ConvLocal, _LINEAR),
    (nn.ConvTranspose, _LINEAR),
    (DenseParams, _LINEAR),
    (nn.LayerNorm, _NORM),
    (nn.RMSNorm, _NORM),
    (nn.BatchNorm, _NORM),
    (nn.GroupNorm, _NORM),
    (nn.InstanceNorm, _NORM),
    (nn.Embed, {"embedding": "embedding"}),
    (nn.PReLU, {"negative_slope": "scalar"}),
)

# Words of a name, after splitting `pos_embedding`, `posEmbedding` and `w1` into words.
_POSITION = {
    "pos",
    "position",
    "positions",
    "positional",
    "posemb",
    "posembed",
    "relpos",
    "wpe",
}
_KERNEL = {"kernel", "kernels"}
_BIAS = {"bias", "biases", "beta", "offset", "shift"}
_TABLE = {
    "embedding",
    "embeddings",
    "embed",
    "embeds",
    "emb",
    "table",
    "codebook",
    "vocab",
    "wte",
}
_TOKEN = {
    "cls",
    "token",
    "tokens",
    "latents",
    "queries",
    "register",
    "registers",
    "prompt",
    "prompts",
}
_GAIN = {"scale", "scales", "gamma", "gain", "layerscale"}
_NORM_MODULE = re.compile(r"(^|_)(ln|bn|gn|norm|[a-z]+norm)\d*(_|$)", re.IGNORECASE)
# The part of a cell, or a parameter of it, that reads the hidden state: `hi`, `hh`, `w_hh`,
# `recurrent_kernel`.
_HIDDEN = re.compile(r"(^|_)(h[a-z]?|hidden\w*|recurrent\w*)$|^recurrent_", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """What is known about a parameter before its role is.

    Attributes:
        path: its path in the params.
        owner: class of the module that declared it; None where none was seen.
        owner_path: path of that module.
        around: classes of the modules in the scope around the owner.
        local_shape: the shape it was declared with.
        dtype: its dtype.
    """

    path: Path
    owner: type[nn.Module] | None
    owner_path: Path
    around: tuple[type[nn.Module], ...]
    local_shape: tuple[int, ...]
    dtype: Any

    @property
    def rank(self) -> int:
        """The number of local axes longer than 1."""
        return sum(size != 1 for size in self.local_shape)

    @property
    def module_name(self) -> str:
        """The last key of the owner's path."""
        return self.owner_path[-1] if self.owner_path else ""


def infer_role(evidence: Evidence) -> Verdict:
    """Returns the role and the rule that decided, in words."""
    if evidence.owner is None:
        return "other", "no module was seen declaring it"
    if not jnp.issubdtype(evidence.dtype, jnp.inexact):
        return "other", f"dtype {evidence.dtype}"
    return _by_owner(evidence) or _by_name(evidence) or _by_rank(evidence)


def _by_owner(evidence: Evidence) -> Verdict | None:
    owner, key = evidence.owner, evidence.path[-1]
    assert owner is not None
    for known, roles in _OWNERS:
        if issubclass(owner, known) and key in roles:
            return _refine(evidence, roles[key], f"class {owner.__name__}")
    if issubclass(owner, nn.WeightNorm):
        return "norm_scale", f"class {owner.__name__}"
    named_norm = any("norm" in cls.__name__.lower() for cls in owner.__mro__)
    if named_norm and evidence.rank <= 1:
        role = (
            "norm_bias"
            if _words(key)[-1:] == ["b"] or _BIAS & set(_words(key))
            else "norm_scale"
        )
        return role, f"class {owner.__name__} is a norm"
    if issubclass(owner, RNNCellBase) and evidence.rank > 1 and _HIDDEN.search(key):
        return "recurrent", f"{key!r} of the cell {owner.__name__}"
    return None


def _refine(evidence: Evidence, role: str, rule: str) -> Verdict:
    """Tells hidden-to-hidden kernels and position tables from others of their class."""
    cell = next((cls for cls in evidence.around if issubclass(cls, RNNCellBase)), None)
    if role == "kernel" and cell is not None and _HIDDEN.search(evidence.module_name):
        return "recurrent", f"{rule}, {evidence.module_name!r} of the cell {cell.__name__}"
    if role == "embedding" and _POSITION & set(_words(evidence.module_name)):
        return "pos_embedding", f"{rule}, name {evidence.module_name!r}"
    return role, rule


def _by_name(evidence: Evidence) -> Verdict | None:
    key = evidence.path[-1]
    role = _role_of_name(key, evidence)
    if role is None:
        return None
    in_norm = _NORM_MODULE.search(evidence.module_name) and evidence.rank <= 1
    if in_norm and role in ("gain", "bias"):
        return (
            f"norm_{'scale' if role == 'gain' else 'bias'}",
            f"name {key!r} in {evidence.module_name!r}",
        )
    if role == "gain" and evidence.rank == 0:
        return "scalar", f"name {key!r}, one value"
    if role == "embedding" and _POSITION & set(_words(evidence.module_name)):
        return "pos_embedding", f"name {key!r} in {evidence.module_name!r}"
    return role, f"name {key!r}"


def _role_of_name(key: str, evidence: Evidence) -> str | None:
    words = _words(key)
    last, every = words[-1] if words else "", set(words)
    if last in _KERNEL:
        return "recurrent" if every & {"recurrent", "hidden"} else "kernel"
    if every & _POSITION:
        return "pos_embedding"
    if last in _BIAS or (key == "b" and evidence.rank <= 1):
        return "bias"
    if every & _TABLE:
        return "embedding"
    if every & _TOKEN:
        return "token"
    if evidence.rank > 1:
        return "gain" if last in _GAIN else None
    # `weight` says nothing by itself; in a module that is named as a norm it is the scale.
    weight_of_norm = last in ("weight", "w") and _NORM_MODULE.search(evidence.module_name)
    return "gain" if last in _GAIN or key == "g" or weight_of_norm else None


def _by_rank(evidence: Evidence) -> Verdict:
    role = ("scalar", "gain", "kernel")[min(evidence.rank, 2)]
    axes = "axis" if evidence.rank == 1 else "axes"
    return role, f"{evidence.rank} local {axes} longer than 1"


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def override_roles(
    roles: Mapping[str | Path, str] | None, paths: Iterable[Path]
) -> dict[Path, Verdict]:
    """Returns the roles the user gave, by path. The first entry that matches a path decides.

    Args:
        roles: role by path tuple, by name (`"head/kernel"`) or by glob (`"head/*"`, in which
            `*` also matches `/`).
        paths: all parameters of the model.

    Raises:
        ArgumentTypeError: `roles` is no mapping.
        UnknownNameError: a role is unknown.
        ParameterError: an entry matches no parameter.
    """
    if roles is None:
        return {}
    if not isinstance(roles, Mapping):
        raise ArgumentTypeError(
            f"roles is a {type(roles).__name__}, not a mapping",
            where="roles=",
            fix="pass a dict from names or globs to roles, such as {'head/*': 'kernel'}",
        )
    names = {path: path_name(path) for path in paths}
    table: dict[Path, Verdict] = {}
    for selector, role in roles.items():
        if role not in ROLES:
            raise unknown_name("role", str(role), ROLES, where=f"roles={{{selector!r}: ...}}")
        for path in _matches(selector, names):
            table.setdefault(path, (role, f"given by roles={{{selector!r}: ...}}"))
    return table


def _matches(selector: str | Path, names: Mapping[Path, str]) -> list[Path]:
    exact = [path for path, name in names.items() if selector in (path, name)]
    wanted = path_name(selector) if isinstance(selector, tuple) else str(selector)
    found = exact or [path for path, name in names.items() if fnmatch.fnmatchcase(name, wanted)]
    if not found:
        close = nearest(wanted, names.values(), count=3) or list(names.values())[:3]
        raise ParameterError(
            f"no parameter matches {wanted!r}",
            where="roles=",
            fix=f"nearest: {', '.join(close) or '(the model has no parameters)'}",
        )
    return found
