"""What documents show, holds: run files, the README's Python, all commands, links, and tables that are whole."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recdistill.cli import main
from recdistill.runs.file import Run

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for folder in (".", "docs", "benchmarks") for path in (ROOT / folder).glob("*.md"))
TEXT = (ROOT / "README.md").read_text(encoding="utf-8") if DOCUMENTS else ""


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_files() -> list[object]:
    """Every TOML block of every document, under the document's name and the number of the block there."""
    return [
        pytest.param(block, id=f"{path.stem}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(blocks("toml", path.read_text(encoding="utf-8")), 1)
    ]


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What can follow a # in a link to a document: its headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_run_files() -> dict[str, str]:
    """The TOML blocks that a file name announces, by that name."""
    return dict(re.findall(r"`([\w-]+\.toml)`:\n\n```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


def execute(command: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", run_files())
def test_every_run_file_is_one(block: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(block)
    Run.read(tmp_path / "run.toml")


def test_the_commands_run(tmp_path: Path) -> None:
    files = named_run_files()
    assert set(files) == {"teacher.toml", "student.toml"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (commands,) = blocks("bash")
    for line in commands.splitlines():
        program, *arguments = line.split()
        assert program == "recdistill"
        last = execute([sys.executable, "-m", "recdistill", *arguments], tmp_path)
    assert len(last.splitlines()) == 1 + 5


def test_the_commands_of_the_recipes_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On few users and items, of those that they name, and beside the model that they are compared with."""
    rows = [f"{user},{179 + (user + step) % 12},{step}\n" for user in range(40) for step in range(5 + user % 6)]
    (tmp_path / "clicks.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    (tmp_path / "teacher.toml").write_text(named_run_files()["teacher.toml"].replace('"shop"', '"clicks.csv"'))
    (session,) = blocks("console", (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    for line in ["$ recdistill train teacher.toml", *session.splitlines()]:
        prompt, program, *arguments = shlex.split(line, comments=True)
        assert (prompt, program) == ("$", "recdistill")
        capsys.readouterr()
        with pytest.raises(SystemExit, match=r"^0$"):
            main(arguments)
    assert len(capsys.readouterr().out.splitlines()) == 1 + 10


def test_the_python_runs(tmp_path: Path) -> None:
    (program,) = blocks("python")
    first, *recommended = execute([sys.executable, "-c", program], tmp_path).splitlines()
    assert re.match(r"NDCG@10 0\.\d{4}, leave-one-out .*, seen items masked", first)
    assert len(recommended) == 5
    assert len(program.splitlines()) <= 15


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(document)):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = document.parent / name if name else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_whole(document: Path) -> None:
    """A row that goes on in the next line is read as the end of its table."""
    for block in re.split(r"\n\s*\n|<!--.*?-->", prose(document)):
        rows = block.strip().splitlines()
        if any(row.startswith("|") for row in rows):
            assert all(row.startswith("|") and row.endswith("|") for row in rows), block[:200]
            assert len({row.replace(r"\|", "").count("|") for row in rows}) == 1, block[:200]
