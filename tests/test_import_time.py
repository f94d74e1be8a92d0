"""Nothing heavy is imported before it is needed: `import recdistill` and `--help` must feel instant."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recdistill

HEAVY = {"torch", "polars", "numpy", "scipy", "httpx2", "pydantic", "safetensors"}
PRINT_MODULES = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"


def modules_after(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter and return the top-level modules that it imported."""
    command = [sys.executable, "-c", f"{statement}; {PRINT_MODULES}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_recdistill_imports_nothing_heavy() -> None:
    assert modules_after("import recdistill") & (HEAVY | {"typer", "rich"}) == set()


def test_the_command_line_starts_without_anything_heavy() -> None:
    """Every command is registered by this import; what a command needs is imported when it runs."""
    assert modules_after("import recdistill.cli") & HEAVY == set()


@pytest.mark.parametrize("name", recdistill.__all__)
def test_every_export_is_there(name: str) -> None:
    assert getattr(recdistill, name) is not None
    assert name in dir(recdistill)


def test_what_type_checkers_see_is_what_is_there() -> None:
    """The imports under TYPE_CHECKING and the table of homes say the same."""
    tree = ast.parse(Path(recdistill.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}".removeprefix("recdistill.")
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == recdistill._HOMES
    assert sorted(seen) == sorted(recdistill.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SASREC'"):
        recdistill.SASREC  # noqa: B018
