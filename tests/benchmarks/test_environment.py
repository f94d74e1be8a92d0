from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.peers import environment
from benchmarks.peers.driver import Arguments
from benchmarks.peers.machine import TUNED_ALLOCATOR

ARGUMENTS = Arguments(Path("histories.npz"), 50, "full-softmax", 1.0, threads=2, inner_dim=64)


class Shell:
    """Stands in for ``subprocess.run``; notes what was asked for."""

    def __init__(self, *, returncode: int = 0, stdout: str = "", stderr: str = "") -> None:
        self.answer = SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, command: list[str], **options: object) -> SimpleNamespace:
        self.commands.append(command)
        if isinstance(env := options.get("env"), dict):
            self.environments.append(env)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        return self.answer


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    fake = Shell(stdout='advice of a library\n{"seconds": 4.5}\n')
    monkeypatch.setattr("subprocess.run", fake)
    monkeypatch.setattr(environment, "FOLDER", tmp_path)
    monkeypatch.setattr(environment, "_base_python", lambda: "python3.11")
    return fake


def test_an_environment_is_made_once(shell: Shell, tmp_path: Path) -> None:
    assert environment.interpreter("recbole") == environment.interpreter("recbole")
    assert len(shell.commands) == 2  # the environment, then its packages
    assert "torch==2.13.0" in shell.commands[1]


def test_other_pins_make_it_anew(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.interpreter("recbole")
    monkeypatch.setitem(environment.PEERS, "recbole", ("recbole==9",))
    environment.interpreter("recbole")
    assert shell.commands[-1][-1] == "recbole==9"


def test_a_failed_installation_is_tried_again(shell: Shell) -> None:
    shell.answer = SimpleNamespace(returncode=1, stdout="", stderr="no such release")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"(?s)environment of recbole.*no such release"):
            environment.interpreter("recbole")


def test_the_result_is_the_last_line(shell: Shell) -> None:
    assert environment.run_driver("ours_sasrec", ARGUMENTS) == {"seconds": 4.5}


def test_the_allocator_is_tuned_only_where_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set in the caller's shell would make both rounds the same."""
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    environment.run_driver("ours_sasrec", ARGUMENTS)
    environment.run_driver("ours_sasrec", ARGUMENTS, tuned=True)
    stock, tuned = shell.environments
    assert not TUNED_ALLOCATOR.keys() & stock.keys()
    assert TUNED_ALLOCATOR.items() <= tuned.items()


def test_threads_are_the_same_for_all(shell: Shell) -> None:
    environment.run_driver("ours_sasrec", ARGUMENTS)
    assert shell.environments[0]["OMP_NUM_THREADS"] == "2"


def test_a_failing_driver_says_how_to_see_it(shell: Shell) -> None:
    shell.answer = SimpleNamespace(returncode=1, stdout="", stderr="ImportError: x")
    with pytest.raises(RuntimeError, match=r"(?s)-m benchmarks\.peers\.ours_sasrec --sequences.*ImportError: x"):
        environment.run_driver("ours_sasrec", ARGUMENTS)
