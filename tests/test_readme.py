"""What the README shows, runs: every TOML block is a run file, every Python block and every command is executed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recdistill.runfile import Run

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def named_run_files() -> dict[str, str]:
    """The TOML blocks that a file name announces, by that name."""
    return dict(re.findall(r"`([\w-]+\.toml)`:\n\n```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


def execute(command: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("toml"))
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


def test_the_python_runs(tmp_path: Path) -> None:
    (program,) = blocks("python")
    first, *recommended = execute([sys.executable, "-c", program], tmp_path).splitlines()
    assert re.match(r"NDCG@10 0\.\d{4}, leave-one-out .*, seen items masked", first)
    assert len(recommended) == 5
    assert len(program.splitlines()) <= 15
