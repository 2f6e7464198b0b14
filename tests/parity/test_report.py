"""`docs/parity.md` is what `make parity` writes today: every name, every row, within bars."""

from __future__ import annotations

import pytest

from tests.cases import CASES, Case
from tests.parity.names import name_tables
from tests.parity.report import COLUMNS, PAGE
from tests.runs import FLOAT32_BAR

TEXT = PAGE.read_text(encoding="utf-8")
BF16_BAR, FLOAT64_BAR = 2.0, 1e-12


def recorded() -> dict[str, dict[str, str]]:
    """Returns the rows of the table of numbers by name."""
    lines = TEXT[TEXT.index("## Numbers") :].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    rows = [dict(zip(COLUMNS, row)) for row in cells if len(row) == len(COLUMNS)]
    return {row["row"]: row for row in rows[2:]}


def test_the_names_are_today_s() -> None:
    assert name_tables() in TEXT, "run `make parity`"


def test_the_rows_are_today_s() -> None:
    assert list(recorded()) == [case.name for case in CASES], "run `make parity`"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_figure_keeps_its_bar(case: Case) -> None:
    row = recorded()[case.name]
    if "in_optax" in case.lacks:
        assert row["float32"] == "only here"
        return
    assert float(row["float64"]) <= FLOAT64_BAR or "float64" in case.lacks
    assert float(row["bf16"]) <= BF16_BAR
    bar = max(FLOAT32_BAR, 3 * float(row["noise"] or 0.0))
    for column in ("float32", "eager", "schedule", "mask"):
        if row[column] not in ("-", "only here") and column not in case.lacks:
            assert float(row[column]) <= bar, column
    equal, of = row["bitwise"].split("/")
    assert (equal == of) == ("bitwise" not in case.lacks)
