"""Sphinx settings; `make docs` builds with warnings as errors."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "flaxtrain"
author = "The flaxtrain authors"
copyright = "The flaxtrain authors. Apache License 2.0"
version = release = runpy.run_path(str(ROOT / "flaxtrain/version.py"))["__version__"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "member-order": "bysource",
}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Signatures show the names of types and not the unions behind them.
ALIAS = re.compile(r"^(\w+): TypeAlias = ", re.MULTILINE)
autodoc_type_aliases = {
    name: name
    for path in (ROOT / "flaxtrain").rglob("*.py")
    for name in ["ArrayLike", "DTypeLike", *ALIAS.findall(path.read_text(encoding="utf-8"))]
}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a dataclass are not described a second time

CODE = re.compile(r"(?<![`:\w])`([^`]+)`(?!`)(\w?)")

default_role = "literal"  # tables keep their single backticks

html_theme = "furo"
html_title = f"flaxtrain {version}"


def indented_as_literal(lines: list[str]) -> list[str]:
    """Returns the lines with every block that is indented below a paragraph made literal.

    Docstrings show formulas by indenting them, without reStructuredText's `::`. Sections were
    made fields (`:param x:`) before, so what is indented in them stays as it is.
    """
    result: list[str] = []
    opener = ""  # the line that decides what an indented block below it means
    for line in lines:
        indented = line.startswith("    ")
        above = result[-1] if result else ""
        if indented and not above.startswith("    ") and not _takes_block(opener):
            result += ["", "::", ""]
            opener = "::"
        elif line.strip() and not indented:
            if above.startswith("    ") and not opener.startswith(">>>"):
                result.append("")
            doctest = opener.startswith(">>>") and above.strip()
            opener = opener if doctest else line
        result.append(line)
    return result


def _takes_block(opener: str) -> bool:
    """Whether an indented block here already has a meaning, as in a list or a doctest."""
    return opener.endswith("::") or opener.startswith((".. ", "- ", "* ", ">>>", ":", "="))


def markdown_code(lines: list[str]) -> list[str]:
    """Returns the lines with `code` as Markdown writes it turned into literals."""
    paragraphs = re.split(r"(\n\s*\n)", "\n".join(lines))
    for i, paragraph in enumerate(paragraphs):
        if ">>>" not in paragraph and "====" not in paragraph:
            paragraphs[i] = CODE.sub(
                lambda found: f"``{found[1]}``" + ("\\ " if found[2] else "") + found[2],
                paragraph,
            )
    return "".join(paragraphs).split("\n")


def _before_napoleon(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = markdown_code(lines)


def _after_napoleon(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = indented_as_literal(lines)


def _names_of_aliases(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: Any, returns: Any
) -> tuple[Any, Any]:
    def plain(text: Any) -> Any:
        return text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)

    return plain(signature), plain(returns)


def setup(app: Any) -> None:
    """Registers the hooks around napoleon's, which reads the sections."""
    app.connect("autodoc-process-signature", _names_of_aliases)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=900)
