"""The table of optimizers and transformations: one file for each family, a row for each use."""

from __future__ import annotations

import importlib
import pkgutil

from tests.cases.base import CAPABILITIES, Case, Lack

__all__ = ["CAPABILITIES", "CASES", "Case", "Lack"]

_FAMILIES = sorted(module.name for module in pkgutil.iter_modules(__path__))

CASES: tuple[Case, ...] = tuple(
    case
    for name in _FAMILIES
    if name != "base"
    for case in importlib.import_module(f"{__name__}.{name}").CASES
)
