"""Imports go one way."""

import ast
from pathlib import Path

import recdistill

ROOT = Path(recdistill.__file__).parent
LAYERS = (  # from the top; what stands in one row knows nothing of each other
    ("cli",),
    ("demo",),
    ("api", "labelling", "tables"),
    ("runs",),
    ("training", "serving"),
    ("methods",),
    ("evaluation", "augmentations", "clustering"),
    ("teachers",),
    ("models",),
    ("losses", "rankings"),
    ("data",),
    ("settings", "registry", "files", "devices", "consoles", "arrays"),
    ("errors",),
)
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}


def imported(path: Path) -> set[str]:
    """The layers' names in a module's imports, but for what only type checkers read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = [f"{node.module}.{alias.name}" for node in froms for alias in node.names]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("recdistill.")} - {"__version__"}


def test_imports_go_down_only() -> None:
    """Packages that import each other can be read, tested and moved only together; a new one needs a row above."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        if own in {"__init__", "__main__"}:  # the doors, which open onto everything
            continue
        wrong += [f"{path}: {name}" for name in imported(path) - {own} if DEPTH[name] <= DEPTH[own]]
    assert wrong == []
