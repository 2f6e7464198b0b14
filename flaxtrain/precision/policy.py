"""Precision policies: in which dtype parameters are stored, computed with, and put out.

As text, a policy is one name for all three (`"bf16"`), or says each by its letter:
`"p=f32,c=bf16,o=f32"` stores parameters in float32, computes in bfloat16 and puts out float32.

    name             stored   computed   output
    f32, float32     f32      f32        f32
    bf16, bfloat16   f32      bf16       f32
    f16, float16     f32      f16        f32
    f64, float64     f64      f64        f64
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from flaxtrain.answering import answering_class
from flaxtrain.checks import check_choice, floating_dtype
from flaxtrain.errors import ArgumentError, ArgumentTypeError, unknown_name
from flaxtrain.precision.rounding import ROUNDING_RULES
from flaxtrain.text import kind_of
from flaxtrain.typing import DTypeLike

__all__ = ["FULL", "Policy", "PolicyLike", "Precision", "short_name", "stored_dtype"]

_SHORT = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "f64": "float64"}
_NAMES = {**_SHORT, **{name: name for name in _SHORT.values()}}
_LETTERS = {"p": "param", "c": "compute", "o": "output"}

_POLICY_FIX = 'pass "f32", "bf16", "f16", "f64", or such as "p=f32,c=bf16,o=f32"'


def short_name(dtype: DTypeLike) -> str:
    """Returns the short name of a floating dtype, or numpy's where there is none.

    Example:
        >>> short_name(jnp.bfloat16), short_name("float32")
        ('bf16', 'f32')
    """
    name = jnp.dtype(dtype).name
    return next((short for short, long in _SHORT.items() if long == name), name)


def stored_dtype(name: str, dtype: Any, *, where: str) -> np.dtype[Any]:
    """Returns what somebody passed as the dtype of parameters: one that can be trained in.

    Args:
        name: the argument's name, for the message.
        dtype: a dtype, its name, or a scalar type such as `jnp.bfloat16`.
        where: the function or class that was called.

    Raises:
        ArgumentTypeError: it is no floating dtype.
        UnknownNameError: it is another one than float16, bfloat16, float32 and float64.

    Example:
        >>> stored_dtype("dtype", "bfloat16", where="LoRA")
        dtype(bfloat16)
    """
    found = floating_dtype(name, dtype, allow_complex=False, where=where)
    if found.name not in _SHORT.values():
        raise unknown_name("dtype", found.name, _SHORT.values(), where=f"{where}({name}=...)")
    return found


@answering_class()
@dataclass(frozen=True, repr=False)
class Policy:
    """The dtypes of a model, or of a part of one.

    Args:
        param: in which parameters are stored.
        compute: in which modules compute.
        output: of what the model puts out. Each is one of float16, bfloat16, float32 and
            float64, by any name; None, in an override, is what holds without it.

    Raises:
        ArgumentTypeError: a dtype is not a floating one.
        UnknownNameError: the name of a dtype is not known.

    Example:
        >>> Policy.of("bf16")
        Policy('p=f32,c=bf16,o=f32')
        >>> Policy.of("c=f32").over(Policy.of("bf16")) == Policy.of("f32")
        True
    """

    param: DTypeLike | None = None
    compute: DTypeLike | None = None
    output: DTypeLike | None = None

    def __post_init__(self) -> None:
        for name in _LETTERS.values():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _dtype(name, value))

    @classmethod
    def of(cls, text: PolicyLike, *, where: str = "Policy.of(text)") -> Policy:
        """Reads a policy; entries that the text leaves out are None.

        Args:
            text: as at the top of this file, or a policy, which is returned.
            where: the argument, for messages.

        Raises:
            ArgumentTypeError: it is neither a text nor a policy.
            UnknownNameError: a name or a letter is not known; the nearest is named.
            ArgumentError: a letter is given twice, or there is nothing in the text.

        Example:
            >>> Policy.of("o=f32, c=float16")
            Policy('c=f16,o=f32')
        """
        if isinstance(text, Policy):
            return text
        if not isinstance(text, str):
            raise ArgumentTypeError(
                f"{text!r} is {kind_of(text)}, not a policy",
                where=where,
                fix=_POLICY_FIX,
            )
        if "=" not in text and "," not in text:
            name = _long(text.strip(), where, _NAMES)
            stored = "float64" if name == "float64" else "float32"
            return cls(stored, name, stored)
        found: dict[str, str] = {}
        for part in text.split(","):
            letter, equals, name = (word.strip() for word in part.partition("="))
            if not equals:
                raise ArgumentError(
                    f"{part.strip()!r} in {text!r} has no '='", where=where, fix=_POLICY_FIX
                )
            if letter not in _LETTERS:
                raise unknown_name("letter", letter, _LETTERS, where=f"{where}: {text!r}")
            if letter in found:
                raise ArgumentError(
                    f"{letter!r} is given twice in {text!r}", where=where, fix=_POLICY_FIX
                )
            found[letter] = _long(name, f"{where}: {text!r}", _NAMES)
        return cls(**{_LETTERS[letter]: name for letter, name in found.items()})

    def over(self, base: Policy) -> Policy:
        """Returns this policy with `base`'s entries where it has none."""
        own = {name: getattr(self, name) for name in _LETTERS.values()}
        return replace(
            base, **{name: value for name, value in own.items() if value is not None}
        )

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """The dtypes that it names, in the order p, c, o."""
        values: list[Any] = [self.param, self.compute, self.output]
        return tuple(value for value in values if value is not None)

    def __str__(self) -> str:
        """Returns the policy as text that `Policy.of` reads."""
        values = {letter: getattr(self, name) for letter, name in _LETTERS.items()}
        return ",".join(f"{k}={short_name(v)}" for k, v in values.items() if v is not None)

    def __repr__(self) -> str:
        return f"Policy({str(self)!r})"


PolicyLike: TypeAlias = str | Policy
"""A policy, or its text."""


def _dtype(name: str, value: Any) -> np.dtype[Any]:
    if isinstance(value, str):
        value = _long(value, f"Policy({name}=...)", _NAMES)
    return stored_dtype(name, value, where="Policy")


def _long(name: str, where: str, known: Mapping[str, str]) -> str:
    if name not in known:
        raise unknown_name("precision", name, known, where=where)
    return known[name]


FULL = Policy.of("f32")
"""float32 throughout, the default: nothing is cast, and modules are as they were written."""


@answering_class()
@dataclass(frozen=True, repr=False)
class Precision:
    """The policy of a model, other policies for parts of it, and how 16 bits are updated.

    A parameter has the policy of the first override that selects it, as groups of an `OptSpec`
    do; entries that an override leaves out are those of `policy`, but for `o`: without it, what
    an overridden module puts out is cast to the dtype in which the modules around compute.

    With the policy `"f32"` and no override nothing is done at all: a model that was written for
    other dtypes keeps them.

    Args:
        policy: the policy of the model; entries that it leaves out are float32.
        overrides: by selector of parameters (see `flaxtrain.params.selector`; text such as
            `"@LayerNorm"`, or a class of modules), the policy of these parameters and of the
            modules that they belong to.
        update: how an update is added to a parameter that is stored in 16 bits: `"nearest"`
            rounds the sum, so that small updates vanish; `"master"` keeps a float32 copy of
            these parameters, `"kahan"` what was rounded off in 16 further bits; `"stochastic"`
            rounds up or down at random, right on average.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        UnknownNameError: a policy, or the rule of updates, is not known.
        ArgumentError: a policy can't be read.

    Example:
        >>> precision = Precision("bf16", {"@LayerNorm": "c=f32"}, update="kahan")
        >>> precision
        Precision('p=f32,c=bf16,o=f32', overrides={'@LayerNorm': 'c=f32'}, update='kahan')
        >>> precision == Precision("c=bfloat16", {"@LayerNorm": "c=float32"}, update="kahan")
        True
    """

    policy: PolicyLike = FULL
    overrides: Mapping[Any, PolicyLike] | Iterable[tuple[Any, PolicyLike]] = field(default=())
    update: str = "nearest"

    def __post_init__(self) -> None:
        policy = Policy.of(self.policy, where="Precision(policy=...)").over(FULL)
        given: Any = self.overrides
        pairs = given.items() if isinstance(given, Mapping) else given
        if isinstance(given, str) or not _are_pairs(pairs := _listed(pairs)):
            raise ArgumentTypeError(
                f"overrides={given!r} is no dict",
                where="Precision",
                fix='pass a dict from selectors to policies, such as {"@LayerNorm": "c=f32"}',
            )
        overrides = tuple(
            (choice, Policy.of(text, where=f"Precision(overrides={{{choice!r}: ...}})"))
            for choice, text in pairs
        )
        check_choice("update", self.update, tuple(ROUNDING_RULES), where="Precision")
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "overrides", overrides)

    @classmethod
    def of(cls, value: str | Policy | Precision) -> Precision:
        """Returns a precision as it is, and makes one of a policy.

        Example:
            >>> Precision.of("f16")
            Precision('p=f32,c=f16,o=f32')
        """
        return value if isinstance(value, Precision) else cls(value)

    @property
    def main(self) -> Policy:
        """The policy of what no override selects; all of its entries are given."""
        assert isinstance(self.policy, Policy)
        return self.policy

    @property
    def rules(self) -> tuple[tuple[Any, Policy], ...]:
        """The overrides, selector and policy, in their order."""
        given: Any = self.overrides
        return given

    @property
    def is_full(self) -> bool:
        """Whether it is the default policy, which changes nothing."""
        return self.main == FULL and not self.rules

    @property
    def needs_loss_scale(self) -> bool:
        """Whether gradients are float16 somewhere: small ones vanish without a scale.

        The gradient with respect to an output of the model has the dtype of that output, so `o`
        counts, too.
        """
        policies = [self.main, *(policy for _, policy in self.rules)]
        return any(dtype == jnp.float16 for policy in policies for dtype in policy.dtypes)

    def __repr__(self) -> str:
        shown = [repr(str(self.main))]
        if self.rules:
            shown.append(f"overrides={ {choice: str(p) for choice, p in self.rules} }")
        if self.update != "nearest":
            shown.append(f"update={self.update!r}")
        return f"Precision({', '.join(shown)})"


def _listed(pairs: Any) -> list[Any]:
    try:
        return list(pairs)
    except TypeError:
        return [pairs]


def _are_pairs(pairs: list[Any]) -> bool:
    return all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
