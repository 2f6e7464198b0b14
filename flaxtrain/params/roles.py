"""What a parameter is for: its role, from the best evidence there is.

Evidence in order: what the user says; the class of the module that declares the parameter; the
parameter's name, with those of its neighbours; the rank of its local shape without axes of size
1. The rank decides only for modules of classes flaxtrain doesn't know (a `Dense` kernel of
shape `(8, 1)` stays a kernel), and it has to be the local shape: under `nn.scan` a norm scale
has two axes.
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
from flaxtrain.text import kind_of
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
    "lora",
    "other",
)
"""Every role: what is multiplied with activations (`kernel`; `recurrent` from hidden state to
hidden state), what is added (`bias`), what norms own (`norm_scale`, `norm_bias`), tables of
vectors (`embedding`, `pos_embedding`), learned inputs (`token`: cls token, latents, prompts),
factors per channel outside of norms (`gain`), single numbers (`scalar`), adapters of kernels
(`lora`), and the rest (`other`)."""

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
_POSITION = {"pos", "position", "positions", "positional"} | {
    *("posemb", "posembed", "relative", "relpos", "wpe")
}
_KERNEL = {"kernel", "kernels", "proj", "projection"}
_BIAS = {"bias", "biases", "beta", "offset", "shift"}
_TABLE = {"embedding", "embeddings", "embed", "embeds", "embedder", "emb", "embs"} | {
    *("table", "codebook", "vocab", "wte")
}
_TOKEN = {"cls", "token", "tokens", "latents", "queries"} | {
    *("register", "registers", "prompt", "prompts")
}
_GAIN = {"scale", "scales", "gamma", "gain", "layerscale"}
_WEIGHT = {"weight", "weights", "w"}
_NORM_MODULE = re.compile(r"(^|_)(ln|bn|gn|rms|norm|[a-z]+norm)\d*(_|$)", re.IGNORECASE)
_NORM_WORD = re.compile(r"[a-z]*norm|normali[sz](e|er|ation)|[blg]n|rms|grn")
# `PreNormBlock` is no norm: it has one.
_HAS_NORMS = {"attention", "block", "conv", "decoder", "dense", "encoder", "head"} | {
    *("linear", "mlp", "model", "net", "transformer")
}
# What may stand beside "embedding" in the name of a class that is a table (`PatchEmbed` isn't).
_OF_TABLE = {"encoding", "input", "learned", "learnable", "shared", "tied", "token", "word"}
# The part of a cell, or a parameter of it, that reads the hidden state: `hi`, `hh`, `w_hh`,
# `recurrent_kernel`.
_HIDDEN = re.compile(r"(^|_)(h[a-z]?|hidden\w*|recurrent\w*)$|^recurrent_", re.IGNORECASE)
_RECURRENT = {"rnn", "gru", "lstm", "recurrent"}
# `b1`, `b_in`, `bq`: the bias of `w1`, `w_in`, `wq`.
_SHORT_BIAS = re.compile(r"b(\d+|[a-z]|_\w+)?")


@dataclass(frozen=True)
class Evidence:
    """What is known about a parameter before its role is.

    Attributes:
        path: its path in the params.
        owner: class of the module that declared it; None where none was seen.
        around: classes of the modules in the scope around the owner.
        local_shape: the shape it was declared with.
        dtype: its dtype.
        neighbours: the local shapes of it and of those beside it, by last key.
    """

    path: Path
    owner: type[nn.Module] | None
    around: tuple[type[nn.Module], ...]
    local_shape: tuple[int, ...]
    dtype: Any
    neighbours: Mapping[str, tuple[int, ...]]

    @property
    def rank(self) -> int:
        """The number of local axes longer than 1."""
        return sum(size != 1 for size in self.local_shape)

    @property
    def module_name(self) -> str:
        """The key above its own: the module's, or one in the dict that an initialiser made."""
        return self.path[-2] if len(self.path) > 1 else ""

    @property
    def position(self) -> str | None:
        """What speaks of positions, the module's name or its class; None if neither does."""
        assert self.owner is not None
        names = {"name": self.module_name, "class": self.owner.__name__}
        found = (f"{kind} {name!r}" for kind, name in names.items() if _POSITION & _set(name))
        return next(found, None)

    @property
    def is_bias(self) -> bool:
        """Whether its name is of a bias: `out_bias`, or `b1` beside a `w1` with more axes."""
        key = self.path[-1]
        words = _words(key)
        if set(words[-1:]) & _BIAS or (self.rank <= 1 and set(words) & _BIAS):
            return True
        if self.rank <= 1 or not _SHORT_BIAS.fullmatch(key):
            return _SHORT_BIAS.fullmatch(key) is not None
        kernel = self.neighbours.get("w" + key[1:], ())
        left = iter(kernel)
        return len(kernel) > len(self.local_shape) and all(n in left for n in self.local_shape)


def is_matrix(role: str, local_shape: tuple[int, ...]) -> bool:
    """Whether a parameter is multiplied with activations and has more than one axis to it."""
    return role in ("kernel", "recurrent") and sum(size > 1 for size in local_shape) > 1


def makes_hidden(role: str) -> bool:
    """Whether what comes of a parameter and the data is a hidden activation."""
    return role in ("kernel", "recurrent", "embedding")


def roles_of(
    evidence: Mapping[Path, Evidence], roles: Mapping[str | Path, str] | None
) -> dict[Path, Verdict]:
    """Returns role and rule of each parameter; what the user gave (`override_roles`) wins."""
    given = override_roles(roles, evidence)
    return {path: given.get(path) or infer_role(one) for path, one in evidence.items()}


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
    named = evidence.is_bias or set(_words(key)[-1:]) & _GAIN
    if _is_norm(owner) and (evidence.rank <= 1 or named):
        role = "norm_bias" if evidence.is_bias else "norm_scale"
        return role, f"class {owner.__name__} is a norm"
    if _is_cell(owner) and evidence.rank > 1 and _HIDDEN.search(key):
        return "recurrent", f"{key!r} of the cell {owner.__name__}"
    return None


def _is_norm(owner: type[nn.Module]) -> bool:
    """Whether the name of the class, or of one of its bases, is that of a norm."""
    return any(
        any(map(_NORM_WORD.fullmatch, words)) and not _HAS_NORMS & set(words)
        for words in (_words(cls.__name__) for cls in owner.__mro__)
    )


def _is_cell(cls: type[nn.Module]) -> bool:
    words = _set(cls.__name__)
    return issubclass(cls, RNNCellBase) or ("cell" in words and bool(words & _RECURRENT))


def _refine(evidence: Evidence, role: str, rule: str) -> Verdict:
    """Tells hidden-to-hidden kernels and position tables from others of their class."""
    cell = next(filter(_is_cell, evidence.around), None)
    if role == "kernel" and cell is not None and _HIDDEN.search(evidence.module_name):
        return "recurrent", f"{rule}, {evidence.module_name!r} of the cell {cell.__name__}"
    if role == "embedding" and evidence.position:
        return "pos_embedding", f"{rule}, {evidence.position}"
    return role, rule


def _by_name(evidence: Evidence) -> Verdict | None:
    key = evidence.path[-1]
    role = _role_of_name(key, evidence)
    if role is None:
        return None
    place = evidence.module_name
    if _NORM_MODULE.search(place) and role in ("gain", "bias"):
        norm_role = "norm_scale" if role == "gain" else "norm_bias"
        return norm_role, f"name {key!r} in {place!r}"
    if role == "gain" and evidence.rank == 0:
        return "scalar", f"name {key!r}, one value"
    if role == "embedding" and evidence.position:
        return "pos_embedding", f"name {key!r}, {evidence.position}"
    return role, f"name {key!r}"


def _role_of_name(key: str, evidence: Evidence) -> str | None:
    words, rank = _words(key), evidence.rank
    last, every = words[-1] if words else "", set(words)
    if last in _KERNEL:
        return "recurrent" if every & {"recurrent", "hidden"} else "kernel"
    if last in _GAIN:
        return "gain"
    if every & _POSITION and rank > 0:
        return "pos_embedding"
    if evidence.is_bias:
        return "bias"
    if every & _TABLE:
        # One vector (`mask_embedding`) is no table.
        return "token" if rank == 1 and evidence.local_shape[-1] > 1 else "embedding"
    if every & _TOKEN:
        return "token"
    return _role_of_weight(key, last, evidence)


def _role_of_weight(key: str, last: str, evidence: Evidence) -> str | None:
    """Returns the role of names that say less: `weight`, `w_hh`, `lora_a`, `g`."""
    rank, axes = evidence.rank, len(evidence.local_shape)
    if rank > 1 and re.search(r"(^|_)hh(_|$)", key):
        return "recurrent"
    # To or from a single unit; a vector per channel has its axis of size 1 in front.
    one_unit = last in _WEIGHT and axes == 2 and evidence.local_shape[1] == 1
    if rank == 1 and (one_unit or (axes == 2 and "lora" in _words(key))):
        return "kernel"
    if "log" in _words(key):  # `A_log`, `log_step`: the logarithm of a factor, entry by entry
        return "gain"
    if rank == 2 and last in _WEIGHT and (table := _table_of_class(evidence)):
        return table
    weight_of_norm = last in _WEIGHT and _NORM_MODULE.search(evidence.module_name)
    return "gain" if rank <= 1 and (key == "g" or weight_of_norm) else None


def _table_of_class(evidence: Evidence) -> str | None:
    """Returns the role of the weight of a class that is a table: `TokenEmbedding`."""
    assert evidence.owner is not None
    words = _set(evidence.owner.__name__)
    if not words & (_TABLE | _POSITION) or not words <= _TABLE | _POSITION | _OF_TABLE:
        return None
    return "pos_embedding" if words & _POSITION else "embedding"


def _by_rank(evidence: Evidence) -> Verdict:
    role = ("scalar", "gain", "kernel")[min(evidence.rank, 2)]
    axes = "axis" if evidence.rank == 1 else "axes"
    return role, f"{evidence.rank} local {axes} longer than 1"


def _words(name: str) -> list[str]:
    # In `RMSNorm2d` the words are `RMS`, `Norm` and `d`.
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _set(name: str) -> set[str]:
    return set(_words(name))


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
            f"roles is {kind_of(roles)}, not a mapping",
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
