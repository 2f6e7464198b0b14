"""The table of parameters that a person reads before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flaxtrain.params.decay import DecayChoice, decay_mask, per_parameter
from flaxtrain.params.facts import Facts, ParamFact
from flaxtrain.tree import flatten

__all__ = ["OverviewRow", "Table", "overview", "readable_bytes"]

Labels: TypeAlias = Mapping[str, Any] | Callable[[ParamFact], Any]

_NAMES_IN_A_NOTE = 5


@dataclass(frozen=True)
class OverviewRow:
    """One parameter in a `Table`.

    `shape` has an axis that `nn.scan` or `nn.vmap` added in brackets: `[3] x 8 x 16`. `group`,
    `decay` and `trainable` are None where `overview` wasn't told about them.
    """

    path: str
    owner: str
    role: str
    shape: str
    dtype: str
    size: int
    group: str | None = None
    decay: bool | None = None
    trainable: bool | None = None


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
        """The titles of the columns; `group`, `decay` and `trainable` only where known."""
        optional = ("group", "decay", "trainable")
        known = [
            title for title in optional if any(getattr(r, title) is not None for r in self.rows)
        ]
        return ("path", "class", "role", "shape", "dtype", "size", *known)

    def __str__(self) -> str:
        """Returns the table as aligned text, with totals and notes."""
        cells = [self.columns, *(self._cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(map(self._aligned, self.columns, line, widths)).rstrip() for line in cells
        ]
        return "\n".join([*lines, *self.totals, *(f"note: {note}" for note in self.notes)])

    def markdown(self) -> str:
        """Returns the table as markdown.

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
        rules = ["---:" if title == "size" else "---" for title in self.columns]
        lines = [f"| {' | '.join(self.columns)} |", f"|{'|'.join(rules)}|"]
        for row in self.rows:
            path, *rest = (cell.replace("|", "\\|") for cell in self._cells(row))
            lines.append(f"| {' | '.join([f'`{path}`', *rest])} |")
        totals = "\n\n".join(self.totals)
        return "\n".join(
            [*lines, "", totals, "", *(f"- {note}" for note in self.notes)]
        ).rstrip()

    def _cells(self, row: OverviewRow) -> tuple[str, ...]:
        values = (
            getattr(row, "owner" if title == "class" else title) for title in self.columns
        )
        return tuple(map(_text, values))

    @staticmethod
    def _aligned(title: str, cell: str, width: int) -> str:
        return cell.rjust(width) if title == "size" else cell.ljust(width)


def overview(
    facts: Facts,
    decay: DecayChoice | None = None,
    groups: Labels | None = None,
    trainable: Labels | None = None,
) -> Table:
    """Returns the table of parameters, in the order of first use.

    Args:
        facts: the table of facts.
        decay: what is decayed: anything `decay_mask` takes.
        groups: the name of each parameter's group: nested dicts with the structure of the
            params, or a function of a `ParamFact`.
        trainable: whether each parameter is trained: nested dicts, or a function.

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
    where = "overview(facts, {}=)"
    decayed, grouped, trained = {}, {}, {}
    if decay is not None:
        decayed = flatten(decay_mask(facts, decay))
    if groups is not None:
        grouped = flatten(per_parameter(facts, groups, str, where=where.format("groups")))
    if trainable is not None:
        trained = flatten(
            per_parameter(facts, trainable, bool, where=where.format("trainable"))
        )
    ordered = facts.by_depth()
    rows = tuple(
        OverviewRow(
            path=fact.name,
            owner=fact.owner_name,
            role=fact.role,
            shape=shape_text(fact),
            dtype=fact.dtype.name,
            size=fact.size,
            group=grouped.get(fact.path),
            decay=decayed.get(fact.path),
            trainable=trained.get(fact.path),
        )
        for fact in ordered
    )
    totals = [_total(ordered)]
    for title, column in (("decayed", decayed), ("trainable", trained)):
        if column:
            totals.append(f"{title}: {_total([fact for fact in ordered if column[fact.path]])}")
    return Table(rows, tuple(totals), tuple(_notes(ordered)))


def shape_text(fact: ParamFact) -> str:
    """Returns the shape as text, lifted axes in brackets; `scalar` where it has no axes."""
    sizes = (
        f"[{size}]" if axis in fact.lifted_axes else str(size)
        for axis, size in enumerate(fact.shape)
    )
    return " x ".join(sizes) or "scalar"


def _total(facts: Sequence[ParamFact]) -> str:
    size, nbytes = sum(fact.size for fact in facts), sum(fact.nbytes for fact in facts)
    return (
        f"{_count(len(facts), 'parameter')}, {_count(size, 'value')}, {readable_bytes(nbytes)}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def readable_bytes(number: float) -> str:
    """Returns a number of bytes as people write it.

    Example:
        >>> readable_bytes(600), readable_bytes(2048)
        ('600 B', '2.0 KiB')
    """
    if number < 1024:
        return f"{number} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:,.1f} TiB"


def _notes(facts: Sequence[ParamFact]) -> list[str]:
    kinds = (
        ("no module was seen declaring", lambda fact: not fact.resolved),
        ("role other:", lambda fact: fact.resolved and fact.role == "other"),
        ("dead, no output depends on", lambda fact: fact.uses == 0),
        ("tied, used in several places:", lambda fact: (fact.uses or 0) > 1),
    )
    return [
        f"{title} {_names([fact.name for fact in facts if belongs(fact)])}"
        for title, belongs in kinds
        if any(map(belongs, facts))
    ]


def _names(names: Sequence[str]) -> str:
    shown, rest = names[:_NAMES_IN_A_NOTE], len(names) - _NAMES_IN_A_NOTE
    return ", ".join(shown) + (f" and {rest:,} more" if rest > 0 else "")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
