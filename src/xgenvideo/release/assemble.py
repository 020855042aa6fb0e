"""The code that travels with a release: one file a class, made of this program's own definitions and nothing else.

A released model must load where this program is not installed, and must not be a second version of it. So what
`release/hub/` defines is written out with every definition it uses, taken as it stands from the modules that have it.
"""

import ast
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "xgenvideo"
HUB = f"{PACKAGE}.release.hub"
# einops is not wherever transformers is; ours has the few forms that the model uses.
INSTEAD = {"einops": f"{HUB}.axes"}
CODE = ("configuration_xgenvideo.py", "modeling_xgenvideo.py", "processing_xgenvideo.py")


@dataclass
class Module:
    """One module's source: where each of its names is defined, or imported from."""

    name: str
    lines: list[str]
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)

    def text(self, statement: ast.stmt) -> str:
        """The source of a statement with its decorators, and the comment lines right above it."""
        decorators = getattr(statement, "decorator_list", [])
        first = min([statement.lineno, *(one.lineno for one in decorators)]) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : statement.end_lineno])


def hub_code() -> dict[str, str]:
    """Source by file name: what transformers imports from a release."""
    return {name: assemble(f"{HUB}.{name.removesuffix('.py')}") for name in CODE}


def assemble(root: str) -> str:
    """The module `root` in one piece: its imports of this program replaced by the definitions they name.

    Modules of `CODE` stay imports of the file beside it.
    """
    modules: dict[str, Module] = {}
    chosen: dict[tuple[str, str], None] = {}
    foreign: dict[str, None] = {}
    beside: dict[str, None] = {}

    def need(module: Module, name: str) -> None:
        """Take a definition after those that it uses."""
        if name in module.foreign:
            foreign[module.foreign[name]] = None
        if name in module.imported:
            source, original = module.imported[name]
            if source.startswith(f"{HUB}.") and f"{source.rpartition('.')[2]}.py" in CODE:
                beside[f"from .{source.rpartition('.')[2]} import {original}"] = None
            else:
                need(_module(source, modules), original)
        if name not in module.definitions or (module.name, name) in chosen:
            return
        chosen[module.name, name] = None
        for used in _names(module.definitions[name]):
            need(module, used)
        chosen[module.name, name] = chosen.pop((module.name, name))

    start = _module(root, modules)
    for name in start.definitions:
        need(start, name)
    _refuse_namesakes(list(chosen))
    pieces = dict.fromkeys(modules[module].text(modules[module].definitions[name]) for module, name in chosen)
    head = f'"""{ast.get_docstring(ast.parse(chr(10).join(start.lines)))}\n\n{_NOTE}\n"""'
    return "\n".join([head, "", *sorted(foreign), *sorted(beside), "", "\n\n\n".join(pieces), ""])


_NOTE = "Written by `xgv export` out of the program that trained this model; licence as in README.md."


def _module(name: str, modules: dict[str, Module]) -> Module:
    """A module read from its file, not imported."""
    if name not in modules:
        found = importlib.util.find_spec(name)
        assert found, f"{name} has no source"
        source = Path(str(found.origin)).read_text(encoding="utf-8")
        module = modules[name] = Module(name, source.splitlines())
        for statement in ast.parse(source).body:
            _note(module, statement)
    return modules[name]


def _note(module: Module, statement: ast.stmt) -> None:
    """Enter what a top-level statement defines or imports."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        module.definitions[statement.name] = statement
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            module.definitions |= {part.id: statement for part in ast.walk(target) if isinstance(part, ast.Name)}
    elif isinstance(statement, ast.Import):
        for one in statement.names:
            assert one.name.split(".")[0] != PACKAGE, f"{module.name}: import the names, not {one.name}"
            module.foreign[(one.asname or one.name).split(".")[0]] = ast.unparse(ast.Import([one]))
    elif isinstance(statement, ast.ImportFrom):
        source = INSTEAD.get(str(statement.module), str(statement.module))
        for one in statement.names:
            if source.split(".")[0] == PACKAGE:
                module.imported[one.asname or one.name] = (source, one.name)
            else:
                module.foreign[one.asname or one.name] = f"from {source} import {ast.unparse(one)}"


def _names(statement: ast.stmt) -> list[str]:
    """Names that a definition may refer to, also inside annotations that are strings."""
    found = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.append(node.value)
    return list(dict.fromkeys(found))


def _refuse_namesakes(chosen: list[tuple[str, str]]) -> None:
    """Two modules' definitions of one name cannot share a file."""
    owners: dict[str, str] = {}
    for module, name in chosen:
        assert owners.setdefault(name, module) == module, f"{name} is defined in {owners[name]} and in {module}"
