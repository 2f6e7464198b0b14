"""The result of a range test of the learning rate, as values, as text and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from flaxtrain.errors import ArgumentError, ArgumentTypeError
from flaxtrain.text import kind_of

__all__ = ["LearningRateCurve", "suggested"]

Numbers = npt.NDArray[np.float64]

_START = 0.1
"""The share of the points that is left out at the start: their average is of few losses."""


def suggested(
    rates: npt.NDArray[Any], smoothed: npt.NDArray[Any], late: int = 0
) -> float | None:
    """Returns the rate of the steepest descent over log(rate), before the lowest point.

    Args:
        rates: `[points]`, growing.
        smoothed: the smoothed losses, `[points]`.
        late: by how many points the smoothed losses are late.

    Returns:
        The rate; None where the loss does not fall.

    Example:
        >>> rates = np.logspace(-4, 0, 41)
        >>> loss = 1 - 1 / (1 + np.exp(-4 * np.log10(rates / 1e-2)))   # falls around 1e-2
        >>> print(f"{suggested(rates, loss):.2g}")
        0.01
    """
    if not len(rates):
        return None
    first, last = int(_START * len(rates)), int(np.argmin(smoothed)) + 1
    if last - first < 3:
        return None
    slope = np.gradient(smoothed[first:last], np.log(rates[first:last]))
    steepest = int(np.argmin(slope))
    return float(rates[max(0, first + steepest - late)]) if slope[steepest] < 0 else None


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """Loss over learning rate, as `Trainer.find_lr` has found it; print it, or `plot` it.

    Attributes:
        learning_rates: the rate of each update, float64 `[points]`, growing.
        losses: the training loss of each update, before it, `[points]`.
        smoothed: their moving average, `[points]`.
        suggestion: the rate at which the smoothed loss falls most steeply; None where it does
            not fall.
        stopped_because: why the test ended.
    """

    learning_rates: Numbers
    losses: Numbers
    smoothed: Numbers
    suggestion: float | None
    stopped_because: str

    def __str__(self) -> str:
        """Returns the curve as text, in 60 columns, and the suggestion."""
        if not len(self.losses):
            return self._advice()
        low, high = (f"{rate:.0e}" for rate in self.learning_rates[[0, -1]])
        axis = f"{low}{high:>{60 - len(low)}}"
        return "\n".join([*self._picture(), axis, self._advice()])

    def _advice(self) -> str:
        if self.suggestion is None:
            return f"no suggestion: the loss did not fall ({self.stopped_because})"
        return (
            f"suggested learning rate: {self.suggestion:.2g}, the steepest descent of the loss "
            f"({self.stopped_because})"
        )

    def _picture(self, width: int = 60, height: int = 10) -> list[str]:
        columns = np.linspace(0, len(self.smoothed) - 1, width).round().astype(int)
        low, high = _range(self.smoothed)
        values = np.minimum(self.smoothed[columns], high)
        level = np.round((values - low) / (high - low) * (height - 1)).astype(int)
        mark = -1
        if self.suggestion is not None:
            mark = int(np.argmin(np.abs(self.learning_rates[columns] - self.suggestion)))
        rows = []
        for row in reversed(range(height)):
            cells = [
                "*" if at == row else "|" if i == mark else " " for i, at in enumerate(level)
            ]
            label = f"{high:.3g}" if row == height - 1 else f"{low:.3g}" if row == 0 else ""
            rows.append(f"{''.join(cells)} {label}".rstrip())
        return rows

    def plot(self, path: str | Path) -> Path:
        """Writes the curve as an SVG picture: loss over the learning rate, on a log axis.

        Args:
            path: a file name that ends in `.svg`.

        Returns:
            The path.

        Raises:
            ArgumentTypeError: `path` is no path.
            ArgumentError: the file would not be an SVG, or there is no point to draw.
        """
        if not isinstance(path, (str, Path)):
            raise ArgumentTypeError(
                f"path={path!r} is {kind_of(path)}, not a path",
                where="plot",
                fix="pass a string or a pathlib.Path",
            )
        path = Path(path).expanduser()
        if path.suffix != ".svg":
            raise ArgumentError(
                f"path={str(path)!r} does not end in .svg",
                where="plot",
                fix="pass a name like 'learning_rate.svg'; browsers show it",
            )
        if len(self.losses) < 2:
            raise ArgumentError(
                f"the curve has {len(self.losses)} points: {self.stopped_because}",
                where="plot",
                fix="begin at a lower rate: find_lr(min=...)",
            )
        path.write_text(_svg(self), encoding="utf-8")
        return path


_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 20, 560, 300
"""Of the frame, in pixels."""


def _svg(curve: LearningRateCurve) -> str:
    logs = np.log10(curve.learning_rates)
    # Single losses may be far off: the smoothed ones decide what is shown.
    low, high = _range(curve.smoothed)

    def x(log: Any) -> Any:
        return _LEFT + (log - logs[0]) / (logs[-1] - logs[0]) * _WIDTH

    def y(loss: Any) -> Any:
        return _TOP + (high - np.clip(loss, low, high)) / (high - low) * _HEIGHT

    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 20} {bottom + 60}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{right + 20}" height="{bottom + 60}" fill="white"/>',
    ]
    for decade in range(int(np.ceil(logs[0] - 1e-9)), int(np.floor(logs[-1] + 1e-9)) + 1):
        parts += [
            _line(x(decade), _TOP, x(decade), bottom, "#ddd"),
            _text(x(decade), bottom + 18, f"1e{decade}"),
        ]
    for value in np.linspace(low, high, 5):
        parts += [
            _line(_LEFT, y(value), right, y(value), "#ddd"),
            _text(_LEFT - 8, y(value) + 4, f"{value:.3g}", "end"),
        ]
    parts += [
        _curve(x(logs), y(curve.losses), "#9bc", 1),
        _curve(x(logs), y(curve.smoothed), "#036", 2),
    ]
    if curve.suggestion is not None:
        at = x(np.log10(curve.suggestion))
        parts += [
            _line(at, _TOP, at, bottom, "#c30", "6 4"),
            _text(at, _TOP - 6, f"suggestion {curve.suggestion:.2g}"),
        ]
    middle = _TOP + _HEIGHT / 2
    parts += [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" '
        'stroke="black"/>',
        _text(_LEFT + _WIDTH / 2, bottom + 42, "learning rate (log scale)"),
        f'<g transform="rotate(-90 18 {middle})">{_text(18, middle, "training loss")}</g>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _range(smoothed: Numbers) -> tuple[float, float]:
    """Returns the losses to show: those up to the lowest one, and some room; the rest soars."""
    low, high = float(smoothed.min()), float(smoothed[: int(np.argmin(smoothed)) + 1].max())
    room = 0.2 * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


def _line(x1: Any, y1: Any, x2: Any, y2: Any, colour: str, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-dasharray="{dashes}"/>'
    )


def _text(x: Any, y: Any, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _curve(x: Any, y: Any, colour: str, width: int) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
