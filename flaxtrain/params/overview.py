"""The table of parameters that a person reads before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flaxtrain.params.decay import DecayChoice, decay_mask, per_parameter
from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.text import TextTable, counted, listed, readable_bytes
from flaxtrain.tree import Path, flatten

__all__ = ["OverviewRow", "Table", "overview"]

Labels: TypeAlias = Mapping[str, Any] | Callable[[ParamFact], Any]

_OPTIONAL = ("group", "decay", "lr_mult", "trainable")


@dataclass(frozen=True)
class OverviewRow:
    """One parameter in a `Table`.

    `shape` has an axis that `nn.scan` or `nn.vmap` added in brackets: `[3] x 8 x 16`. `rule` is
    the evidence that decided the role. `group`, `decay`, `lr_mult` and `trainable` are None
    where `overview` wasn't told about them. `trainable` is whether the parameter is trained at
    any time; `when` says when, such as `from step 60`, where that changes in the run, and is
    empty elsewhere.
    """

    path: str
    owner: str
    role: str
    shape: str
    dtype: str
    size: int
    rule: str = ""
    group: str | None = None
    decay: bool | None = None
    lr_mult: str | None = None
    trainable: bool | None = None
    when: str = ""


@dataclass(frozen=True)
class Table:
    """A table of parameters: `str(table)` is aligned text, `markdown()` is for TensorBoard.

    Attributes:
        rows: one row per parameter, in the order of first use.
        totals: lines with the sums.
        notes: lines about parameters to look at: without a recorded owner, with role `other`,
            dead, tied.
    """

    rows: tuple[OverviewRow, ...]
    totals: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The titles of the columns; those from `group` on only where known."""
        known = [title for title in _OPTIONAL if any(_cell(row, title) for row in self.rows)]
        return ("path", "class", "role", "shape", "dtype", "size", *known)

    def __str__(self) -> str:
        """Returns the table as aligned text, with totals and notes."""
        return self.text()

    def text(self, *, rules: bool = False) -> str:
        """Returns the table as aligned text, with totals and notes.

        Args:
            rules: whether there is a column with the evidence that decided each role.

        Example:
            >>> import flax.linen as nn, jax.numpy as jnp
            >>> from flaxtrain.params import param_facts
            >>> facts = param_facts(nn.Dense(4, use_bias=False), jnp.ones((1, 3)))
            >>> print(overview(facts).text(rules=True))
            path    class  role    shape  dtype    size  rule
            kernel  Dense  kernel  3 x 4  float32    12  class Dense
            1 parameter, 12 values, 48 B
        """
        notes = (f"note: {note}" for note in self.notes)
        return "\n".join([str(self._cells(rules)), *self.totals, *notes])

    def markdown(self, *, rules: bool = False) -> str:
        """Returns the table as markdown.

        Args:
            rules: whether there is a column with the evidence that decided each role.

        Example:
            >>> import flax.linen as nn, jax.numpy as jnp
            >>> from flaxtrain.params import param_facts
            >>> facts = param_facts(nn.Dense(4, use_bias=False), jnp.ones((1, 3)))
            >>> print(overview(facts).markdown())
            | path | class | role | shape | dtype | size |
            |---|---|---|---|---|---:|
            | `kernel` | Dense | kernel | 3 x 4 | float32 | 12 |
            <BLANKLINE>
            1 parameter, 12 values, 48 B
        """
        totals = "\n\n".join(self.totals)
        notes = (f"- {note}" for note in self.notes)
        return "\n".join([self._cells(rules).markdown(), "", totals, "", *notes]).rstrip()

    def _cells(self, rules: bool) -> TextTable:
        columns = (*self.columns, "rule") if rules else self.columns
        rows = tuple(tuple(_cell(row, title) for title in columns) for row in self.rows)
        return TextTable(columns, rows, right=("size",), code=("path",))


def overview(
    facts: Facts,
    decay: DecayChoice | None = None,
    groups: Labels | None = None,
    trainable: Labels | None = None,
    *,
    lr_mult: Labels | None = None,
    when: Labels | None = None,
) -> Table:
    """Returns the table of parameters, in the order of first use.

    Args:
        facts: the table of facts.
        decay: what is decayed: anything `decay_mask` takes.
        groups: the name of each parameter's group: nested dicts with the structure of the
            params, or a function of a `ParamFact`.
        trainable: whether each parameter is trained: nested dicts, or a function.
        lr_mult: what the learning rate of each parameter is multiplied by, as text (`"0.1"`,
            `"0.42..1"` for the layers of a stack): nested dicts, or a function.
        when: when each parameter is trained, as text (`"from step 60"`): nested dicts, or a
            function. In the text it stands in the place of `trainable`, where it is not empty.

    Returns:
        A `Table`, to be printed or written to TensorBoard.

    Raises:
        ParameterError: nested dicts don't have the structure of the params.
        ArgumentTypeError: a value has the wrong type.
        UnknownNameError: there is no such decay preset.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> from flaxtrain.params import param_facts
        >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(use_bias=False)])
        >>> print(overview(param_facts(model, jnp.ones((1, 3))), decay="kernels"))
        path             class      role        shape  dtype    size  decay
        layers_0/kernel  Dense      kernel      3 x 8  float32    24  yes
        layers_0/bias    Dense      bias        8      float32     8  no
        layers_1/scale   LayerNorm  norm_scale  8      float32     8  no
        3 parameters, 40 values, 160 B
        decayed: 1 parameter, 24 values, 96 B
    """
    decayed = {} if decay is None else flatten(decay_mask(facts, decay))
    grouped = _column(facts, groups, str, "groups")
    trained = _column(facts, trainable, bool, "trainable")
    factors = _column(facts, lr_mult, str, "lr_mult")
    times = _column(facts, when, str, "when")
    ordered = facts.by_depth()
    rows = tuple(
        OverviewRow(
            path=fact.name,
            owner=fact.owner_name,
            role=fact.role,
            shape=shape_text(fact),
            dtype=fact.dtype.name,
            size=fact.size,
            rule=fact.rule,
            group=grouped.get(fact.path),
            decay=decayed.get(fact.path),
            lr_mult=factors.get(fact.path),
            trainable=trained.get(fact.path),
            when=times.get(fact.path, ""),
        )
        for fact in ordered
    )
    totals = [_total(ordered)]
    for title, column in (("decayed", decayed), ("trainable", trained)):
        if column:
            totals.append(f"{title}: {_total([fact for fact in ordered if column[fact.path]])}")
    still = [fact for fact in ordered if trained and not trained[fact.path]]
    if still:
        totals.append(f"frozen: {_total(still)}")
    return Table(rows, tuple(totals), tuple(_notes(ordered)))


def _column(facts: Facts, labels: Labels | None, kind: type, name: str) -> dict[Path, Any]:
    if labels is None:
        return {}
    return flatten(per_parameter(facts, labels, kind, where=f"overview(facts, {name}=)"))


def shape_text(fact: ParamFact) -> str:
    """Returns the shape as text, lifted axes in brackets; `scalar` where it has no axes."""
    sizes = (
        f"[{size}]" if axis in fact.lifted_axes else str(size)
        for axis, size in enumerate(fact.shape)
    )
    return " x ".join(sizes) or "scalar"


def _total(facts: Sequence[ParamFact]) -> str:
    counts = {"parameter": len(facts), "value": sum(fact.size for fact in facts)}
    texts = [counted(number, noun) for noun, number in counts.items()]
    return ", ".join([*texts, readable_bytes(sum(fact.nbytes for fact in facts))])


def _notes(facts: Sequence[ParamFact]) -> list[str]:
    kinds = (
        ("no module was seen declaring", lambda fact: not fact.resolved),
        ("role other:", lambda fact: fact.resolved and fact.role == "other"),
        ("dead, no training output depends on", lambda fact: fact.uses == 0),
        ("tied, used in several places:", lambda fact: (fact.uses or 0) > 1),
    )
    return [
        f"{title} {listed([fact.name for fact in facts if belongs(fact)])}"
        for title, belongs in kinds
        if any(map(belongs, facts))
    ]


def _cell(row: OverviewRow, title: str) -> str:
    value = row.owner if title == "class" else getattr(row, title)
    if title == "trainable" and row.when:
        return row.when
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
