"""Every public name has a docstring, full annotations, and a place in the API pages.

A module lists in `__all__` what other modules may use. A name is public when its room exports
it or another room imports it; it is documented when an `automodule` in `docs/api` names its
module, or the room that exports it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from tests.test_architecture import ROOT, Source, imports, room, sources, under

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BARE = {"dict", "list", "tuple", "set", "frozenset", "type", "Callable", "Mapping", "Sequence"}
BARE |= {"Iterable", "Iterator", "Collection", "Generator", "MutableMapping"}
MAX_IGNORES = 5
IGNORE = re.compile(r"#\s*(?:type|pyright):\s*ignore(?P<rule>\[[\w, -]+\])?(?P<reason>.*)")


def exported(source: Source) -> list[str] | None:
    """Returns `__all__`, or None where there is none."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def definitions(source: Source) -> dict[str, ast.stmt]:
    """Returns the top-level definitions: functions, classes and assigned names."""
    table: dict[str, ast.stmt] = {}
    for node in source.tree.body:
        if isinstance(node, Definition):
            table[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            table |= {t.id: node for t in targets if isinstance(t, ast.Name)}
    return table


def has_no_all(source: Source) -> list[str]:
    public = [
        name
        for name, node in definitions(source).items()
        if isinstance(node, Definition) and not name.startswith("_")
    ]
    if exported(source) is None and public:
        return [f"{source.module} defines {public[0]} and has no __all__"]
    missing = [name for name in exported(source) or [] if not _binds(source, name)]
    return [f"{source.module}.__all__ names {name}, which is not there" for name in missing]


def _binds(source: Source, name: str) -> bool:
    if source.is_package and source.module == "flaxtrain" and name == "__version__":
        return True
    imported = (
        alias.asname or alias.name
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    )
    return name in definitions(source) or name in imported or _lazy(source)


def _lazy(source: Source) -> bool:
    return "__getattr__" in definitions(source)


def lacks_docstring(source: Source) -> list[str]:
    complaints = [] if ast.get_docstring(source.tree) else [f"{source.module} has no docstring"]
    table = definitions(source)
    for name in exported(source) or []:
        node = table.get(name)
        if isinstance(node, Definition) and not ast.get_docstring(node):
            complaints.append(f"{source.module}.{name} has no docstring")
        elif node is not None and not isinstance(node, Definition):
            following = source.tree.body[_position(source, name) + 1 :][:1]
            if not (following and _is_text(following[0])):
                complaints.append(f"{source.module}.{name} has no docstring on the next line")
    return complaints


def _position(source: Source, name: str) -> int:
    node = definitions(source)[name]
    return next(i for i, other in enumerate(source.tree.body) if other.lineno == node.lineno)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def public_names(files: list[Source]) -> set[tuple[str, str]]:
    """Returns `(module, name)` of the names that their own room exports or another one uses."""
    names = {source.module: set(exported(source) or []) for source in files}
    used = {(room(s.module), name) for s in files for _, name in imports(s)}
    found = set()
    for source in files:
        door = room(source.module)
        for name in names[source.module] & set(definitions(source)):
            outside = any(
                r != door and used_as == f"{source.module}.{name}" for r, used_as in used
            )
            if outside or name in names.get(str(door), ()):
                found.add((source.module, name))
    return found


def undocumented(files: list[Source], pages: list[str]) -> list[str]:
    """Returns the public names that no API page shows."""
    names = {source.module: set(exported(source) or []) for source in files}
    shown = set(re.findall(r"automodule:: ([\w.]+)", "\n".join(pages)))
    return sorted(
        f"{module}.{name}"
        for module, name in public_names(files)
        if not any(under(module, home) and name in names.get(home, ()) for home in shown)
    )


def public_functions(source: Source) -> Iterator[tuple[str, ast.FunctionDef]]:
    def visit(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in body:
            hidden = getattr(node, "name", "_").startswith("_")
            if isinstance(node, FUNCTIONS) and (not hidden or node.name == "__init__"):
                yield f"{prefix}.{node.name}", node  # type: ignore[misc]
            elif isinstance(node, ast.ClassDef) and not hidden:
                yield from visit(f"{prefix}.{node.name}", node.body)

    yield from visit(source.module, source.tree.body)


def is_partly_typed(source: Source) -> list[str]:
    complaints = []
    for name, node in public_functions(source):
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        args += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
        hints = {a.arg: a.annotation for a in args if a.arg not in ("self", "cls")}
        hints["return"] = node.returns
        for argument, hint in hints.items():
            if hint is None:
                complaints.append(f"{name}: {argument} has no annotation")
            elif bare := _bare(hint):
                complaints.append(f"{name}: {argument} is a {bare} of nobody knows what")
    return complaints


def _bare(hint: ast.expr) -> str | None:
    """Returns a generic that is used without its parameters, if there is one."""
    parametrised = {id(n.value) for n in ast.walk(hint) if isinstance(n, ast.Subscript)}
    names = (n for n in ast.walk(hint) if isinstance(n, ast.Name) and id(n) not in parametrised)
    return next((n.id for n in names if n.id in BARE), None)


def pages() -> list[str]:
    return [
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/api").glob("*.md"))
    ]


RULES = [has_no_all, lacks_docstring, is_partly_typed]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module(rule: Callable[[Source], list[str]]) -> None:
    complaints = [text for source in sources("flaxtrain") for text in rule(source)]
    assert not complaints, "\n".join(complaints)


def test_every_exported_name_is_on_an_api_page() -> None:
    missing = undocumented(sources("flaxtrain"), pages())
    assert not missing, "\n".join(missing)


def test_every_room_has_its_page_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    names = [path.stem for path in sorted((ROOT / "docs/api").glob("*.md"))]
    assert names and [name for name in names if f"api/{name}" not in contents] == []


def test_type_checker_ignores_are_few_and_each_says_why() -> None:
    found, unexplained = [], []
    for source in sources("flaxtrain", "tasks", "configs"):
        for number, line in enumerate(source.text.splitlines(), 1):
            if match := IGNORE.search(line):
                found.append(f"{source.module}:{number}")
                if not (match["rule"] and match["reason"].strip(" #:-")):
                    unexplained.append(found[-1])
    assert not unexplained, "name the rule and the reason: " + ", ".join(unexplained)
    assert len(found) <= MAX_IGNORES, found


BROKEN = [
    (has_no_all, "def f(): ..."),
    (has_no_all, "__all__ = ['g']\ndef f(): ..."),
    (lacks_docstring, "__all__ = []"),
    (lacks_docstring, "'''Doc.'''\n__all__ = ['f']\ndef f(): ..."),
    (lacks_docstring, "'''Doc.'''\n__all__ = ['A']\nA = 1\nB = 2"),
    (is_partly_typed, "def f(x) -> int: ..."),
    (is_partly_typed, "def f(x: int): ..."),
    (is_partly_typed, "def f(*args, x: int) -> int: ..."),
    (is_partly_typed, "def f(x: dict) -> int: ..."),
    (is_partly_typed, "def f(x: list[dict]) -> int: ..."),
    (is_partly_typed, "class A:\n    def __init__(self, x) -> None: ..."),
]


@pytest.mark.parametrize(("rule", "text"), BROKEN)
def test_the_rule_finds_what_breaks_it(rule: Callable[[Source], list[str]], text: str) -> None:
    assert len(rule(Source("flaxtrain.tree.paths", text))) == 1


ALLOWED = [
    (has_no_all, "def _f(): ..."),
    (has_no_all, "from jax import Array\n__all__ = ['Array']"),
    (lacks_docstring, "'''Doc.'''\n__all__ = ['A']\nA: int = 1\n'''The first letter.'''"),
    (is_partly_typed, "def f(x: dict[str, list[int]]) -> Callable[..., int]: ..."),
    (is_partly_typed, "class A:\n    def f(self) -> None:\n        def g(x): ..."),
]


@pytest.mark.parametrize(("rule", "text"), ALLOWED)
def test_the_rule_lets_pass_what_is_allowed(
    rule: Callable[[Source], list[str]], text: str
) -> None:
    assert rule(Source("flaxtrain.tree.paths", text)) == []


def test_a_name_that_a_room_exports_or_another_room_uses_must_be_on_a_page() -> None:
    names = ["split", "graft", "inner"]
    body = "\n".join([f"__all__ = {names}", *(f"def {name}(): ..." for name in names)])
    files = [
        Source("flaxtrain.tree", "__all__ = ['split']", is_package=True),
        Source("flaxtrain.tree.prune", body),
        Source("flaxtrain.train.state", "from flaxtrain.tree.prune import graft"),
        Source("flaxtrain.tree.paths", "from flaxtrain.tree.prune import inner"),
    ]
    pages = ["```{eval-rst}\n.. automodule:: flaxtrain.tree\n```"]
    assert undocumented(files, pages) == ["flaxtrain.tree.prune.graft"]
    pages += [".. automodule:: flaxtrain.tree.prune"]
    assert undocumented(files, pages) == []
    assert len(undocumented(files, [])) == 2
