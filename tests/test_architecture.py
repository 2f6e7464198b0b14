"""The rules of the house, checked by parsing every file. `LAYERS` is the documentation.

Every rule is a function from a parsed file to a list of complaints, so that each is also run
here on a small source that breaks it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room imports from strictly lower layers and from itself. The longest matching row counts.
LAYERS: dict[str, int] = {
    "flaxtrain.version": 0,
    "flaxtrain.errors": 0,
    "flaxtrain.typing": 0,
    "flaxtrain.answering": 0,
    "flaxtrain.checks": 0,
    "flaxtrain.text": 0,
    "flaxtrain.durations": 0,
    "flaxtrain.tree": 0,
    "flaxtrain.schedules": 1,
    "flaxtrain.optim": 1,
    "flaxtrain.precision": 1,
    "flaxtrain.metrics": 1,
    "flaxtrain.losses": 1,
    "flaxtrain.precision.apply": 2,  # sets the dtypes of Linen modules
    "flaxtrain.metrics.clu_adapter": 2,  # clu imports flax
    "flaxtrain.params": 2,
    "flaxtrain.spec": 2,
    "flaxtrain.train": 3,
    "flaxtrain.parallel": 3,
    "flaxtrain.data": 3,
    "flaxtrain.monitor": 4,
    "flaxtrain.checkpoint": 4,
    "flaxtrain.loop": 5,
    "flaxtrain.cli": 6,
    "flaxtrain.__main__": 7,  # `python -m flaxtrain`
    "flaxtrain": 7,  # the front door, flaxtrain/__init__.py
    "flaxtrain.compat": 8,  # doors for other libraries' users; imported by nothing
}

# The only steps sideways: (from, to), never both ways. Layer 0 is ordered the same way.
SIDEWAYS = {
    ("flaxtrain.spec", "flaxtrain.params"),  # a spec is resolved against the table of facts
    ("flaxtrain.train", "flaxtrain.data"),  # the step reads batches by the data room's names
    ("flaxtrain.answering", "flaxtrain.errors"),
    ("flaxtrain.checks", "flaxtrain.errors"),
    ("flaxtrain.checks", "flaxtrain.text"),
    ("flaxtrain.durations", "flaxtrain.errors"),
    ("flaxtrain.durations", "flaxtrain.checks"),
    ("flaxtrain.durations", "flaxtrain.text"),
    ("flaxtrain.tree", "flaxtrain.errors"),
    ("flaxtrain.tree", "flaxtrain.typing"),
    ("flaxtrain.checks", "flaxtrain.typing"),
}

# Mathematics (layers 0 and 1) knows arrays and trees, not modules.
NOT_IN_MATHEMATICS = ("flax", "clu", "orbax", "tensorboardX")
NOWHERE = ("optax", "tensorflow", "torch", "tqdm", "flax.training")
EXECUTES_DATA = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
EXECUTING_CALLS = ("eval", "exec", "compile", "__import__")
NO_ROOM = ("util", "utils", "helper", "helpers", "common", "misc", "_src")
MAX_FILE, MAX_FUNCTION = 350, 60


@dataclass(frozen=True)
class Source:
    """A parsed file and its dotted name; `package` is where relative imports start."""

    module: str
    text: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @classmethod
    def read(cls, path: Path) -> Source:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        return cls(
            ".".join(parts[:-1] if is_package else parts),
            path.read_text(encoding="utf-8"),
            is_package,
        )


def sources(*folders: str) -> list[Source]:
    return [Source.read(p) for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imports(source: Source) -> Iterator[tuple[int, str]]:
    """Yields `(line, dotted name)` of every import, wherever it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = source.module.split(".")
                keep = len(parts) - node.level + source.is_package
                base = ".".join([*parts[:keep], *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            target = node.args[0] if node.args else None
            known = isinstance(target, ast.Constant) and isinstance(target.value, str)
            yield node.lineno, target.value if known else "<computed>"


def room(name: str) -> str | None:
    rows = [row for row in LAYERS if under(name, row)]
    return max(rows, key=len, default=None)


def breaks_direction(source: Source) -> list[str]:
    own = room(source.module)
    if own is None or (own == "flaxtrain" and source.module != "flaxtrain"):
        return [f"{source.module} has no row in LAYERS"]
    complaints = []
    for line, name in imports(source):
        other = room(name)
        if other is None or other == own or (own, other) in SIDEWAYS:
            continue
        if LAYERS[other] >= LAYERS[own]:
            complaints.append(f"{source.module}:{line} imports {name}: {own} -> {other}")
    return complaints


def imports_flax_in_mathematics(source: Source) -> list[str]:
    if LAYERS[room(source.module) or "flaxtrain"] > 1:
        return []
    return _banned(source, NOT_IN_MATHEMATICS)


def imports_what_is_banned(source: Source) -> list[str]:
    return _banned(source, NOWHERE)


def _banned(source: Source, banned: tuple[str, ...]) -> list[str]:
    return [
        f"{source.module}:{line} imports {name}"
        for line, name in imports(source)
        if any(under(name, row) for row in banned)
    ]


def avoids_front_door(source: Source) -> list[str]:
    """For tasks and configs, which `import flaxtrain` or `from flaxtrain import name` only."""
    return [
        f"{source.module}:{line} imports {name}"
        for line, name in imports(source)
        if under(name, "flaxtrain") and (_deep(source, line) or name == "<computed>")
    ]


def _deep(source: Source, line: int) -> bool:
    code = source.text.splitlines()[line - 1].strip()
    return re.match(r"(from flaxtrain import |import flaxtrain( as \w+)?$)", code) is None


def executes_data(source: Source) -> list[str]:
    complaints = _banned(source, EXECUTES_DATA)
    complaints += [
        f"{source.module}:{line} computes what it imports"
        for line, name in imports(source)
        if name == "<computed>"
    ]
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        pickles = any(
            word.arg == "allow_pickle" and ast.unparse(word.value) != "False"
            for word in node.keywords
        )
        if called in EXECUTING_CALLS or re.match(r"yaml\.\w*load", called) or pickles:
            complaints.append(f"{source.module}:{node.lineno} calls {ast.unparse(node)[:60]}")
    return complaints


def is_too_long(source: Source) -> list[str]:
    complaints = []
    lines = len(source.text.splitlines())
    # A list of names that are exported is no code.
    only_exports = all(
        isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr))
        for node in source.tree.body
    )
    if lines > MAX_FILE and not (source.is_package and only_exports):
        complaints.append(f"{source.module} has {lines} lines, more than {MAX_FILE}")
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # The limit is about code: a thorough docstring is no reason to cut a function up.
            lines = (node.end_lineno or 0) - node.lineno + 1 - _docstring_lines(node)
            if lines > MAX_FUNCTION:
                complaints.append(f"{source.module}.{node.name} has {lines} lines of code")
    return complaints


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def is_no_room(source: Source) -> list[str]:
    wrong = [part for part in source.module.split(".") if part in NO_ROOM]
    return [f"{source.module}: {wrong[0]!r} does not say what is in it"] if wrong else []


RULES_OF_THE_PACKAGE = [
    breaks_direction,
    imports_flax_in_mathematics,
    imports_what_is_banned,
    executes_data,
    is_too_long,
    is_no_room,
]
RULES_OF_TASKS = [
    avoids_front_door,
    imports_what_is_banned,
    executes_data,
    is_too_long,
    is_no_room,
]


@pytest.mark.parametrize("rule", RULES_OF_THE_PACKAGE, ids=lambda rule: rule.__name__)
def test_no_file_of_the_package(rule: Callable[[Source], list[str]]) -> None:
    files = sources("flaxtrain")
    assert len(files) > 10, "the package was not found"
    complaints = [text for source in files for text in rule(source)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("rule", RULES_OF_TASKS, ids=lambda rule: rule.__name__)
def test_no_task_or_config(rule: Callable[[Source], list[str]]) -> None:
    complaints = [text for source in sources("tasks", "configs") for text in rule(source)]
    assert not complaints, "\n".join(complaints)


def test_every_row_of_the_table_is_a_known_layer_and_steps_sideways_go_one_way() -> None:
    assert all(LAYERS[a] == LAYERS[b] and (b, a) not in SIDEWAYS for a, b in SIDEWAYS)
    assert not any(LAYERS[a] == 1 for a, _ in SIDEWAYS), "siblings on layer 1 stay apart"


BROKEN = [
    (breaks_direction, "flaxtrain.tree.paths", "from flaxtrain.optim import adam"),
    (breaks_direction, "flaxtrain.optim.adam", "from flaxtrain.schedules import constant"),
    (breaks_direction, "flaxtrain.optim.adam", "def f():\n    import flaxtrain.spec"),
    (
        breaks_direction,
        "flaxtrain.optim.adam",
        "if TYPE_CHECKING:\n    from flaxtrain import spec",
    ),
    (breaks_direction, "flaxtrain.optim.adam", "from ..spec import build"),
    (breaks_direction, "flaxtrain.optim.adam", "import_module('flaxtrain.train.step')"),
    (breaks_direction, "flaxtrain.params.facts", "from flaxtrain.spec import OptSpec"),
    (breaks_direction, "flaxtrain.train.step", "from flaxtrain.loop import Trainer"),
    (breaks_direction, "flaxtrain.metrics.mean", "from flaxtrain.metrics.clu_adapter import a"),
    (breaks_direction, "flaxtrain.cli.main", "import flaxtrain as ft"),
    (breaks_direction, "flaxtrain", "from flaxtrain.compat import optax"),
    (breaks_direction, "flaxtrain.attic.box", "import jax"),
    (imports_flax_in_mathematics, "flaxtrain.losses.regression", "from flax import linen"),
    (imports_flax_in_mathematics, "flaxtrain.metrics.mean", "import clu.metrics"),
    (imports_what_is_banned, "flaxtrain.spec.build", "import optax"),
    (imports_what_is_banned, "flaxtrain.spec.build", "from optax.contrib import muon"),
    (imports_what_is_banned, "tasks.digits", "def f():\n    import torch.nn as nn"),
    (imports_what_is_banned, "flaxtrain.train.state", "from flax import training"),
    (imports_what_is_banned, "flaxtrain.train.state", "from flax.training import train_state"),
    (imports_what_is_banned, "flaxtrain.data.batches", "importlib.import_module('tensorflow')"),
    (avoids_front_door, "tasks.digits.run", "from flaxtrain.loop import Trainer"),
    (avoids_front_door, "configs.digits", "import flaxtrain.loop"),
    (avoids_front_door, "configs.digits", "def f():\n    from flaxtrain.loop import Trainer"),
    (executes_data, "flaxtrain.spec.build", "import pickle"),
    (executes_data, "flaxtrain.spec.build", "from cloudpickle import loads"),
    (executes_data, "flaxtrain.spec.build", "x = eval('1')"),
    (executes_data, "flaxtrain.spec.build", "exec('x = 1')"),
    (executes_data, "flaxtrain.spec.build", "yaml.load(text)"),
    (executes_data, "flaxtrain.spec.build", "yaml.unsafe_load(text)"),
    (executes_data, "flaxtrain.data.digits", "np.load(path, allow_pickle=True)"),
    (executes_data, "flaxtrain.data.digits", "np.load(path, allow_pickle=flag)"),
    (executes_data, "flaxtrain.spec.build", "importlib.import_module(name)"),
    (is_too_long, "flaxtrain.optim.adam", "x = 1\n" * (MAX_FILE + 1)),
    (is_too_long, "flaxtrain.optim.adam", "def f():\n" + "    x = 1\n" * MAX_FUNCTION),
    (is_no_room, "flaxtrain.train.utils", ""),
    (is_no_room, "flaxtrain._src.adam", ""),
]


@pytest.mark.parametrize(("rule", "module", "text"), BROKEN)
def test_the_rule_finds_what_breaks_it(
    rule: Callable[[Source], list[str]], module: str, text: str
) -> None:
    assert len(rule(Source(module, text))) == 1


ALLOWED = [
    (breaks_direction, "flaxtrain.optim.adam", "from flaxtrain.optim.per_leaf import Rule"),
    (breaks_direction, "flaxtrain.spec.build", "from flaxtrain import optim, params"),
    (breaks_direction, "flaxtrain.compat.optax", "import flaxtrain as ft"),
    (imports_flax_in_mathematics, "flaxtrain.params.facts", "from flax import linen"),
    (imports_what_is_banned, "flaxtrain.compat", "from flaxtrain.compat import optax"),
    (imports_what_is_banned, "flaxtrain.train.state", "import flax.training_wheels"),
    (avoids_front_door, "tasks.digits.run", "import flaxtrain as ft\nfrom tasks import digits"),
    (avoids_front_door, "tasks.digits.run", "from flaxtrain import OptSpec, Trainer"),
    (executes_data, "flaxtrain.params.facts", "jax.eval_shape(f)\nnp.load(p)\nre.compile('a')"),
    (executes_data, "flaxtrain.data.digits", "np.load(path, allow_pickle=False)"),
    (
        is_too_long,
        "flaxtrain.optim.adam",
        'def f():\n    """'
        + "\n" * MAX_FUNCTION
        + '"""\n'
        + "    x = 1\n" * (MAX_FUNCTION - 1),
    ),
    (is_no_room, "flaxtrain.train.common_steps", ""),
]


@pytest.mark.parametrize(("rule", "module", "text"), ALLOWED)
def test_the_rule_lets_pass_what_is_allowed(
    rule: Callable[[Source], list[str]], module: str, text: str
) -> None:
    assert rule(Source(module, text)) == []
