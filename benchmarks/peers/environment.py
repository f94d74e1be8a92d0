"""An environment for each peer, made from its published packages, and how a driver is run in it.

No peer can share our environment: each needs numpy 1.

Run ``python -m benchmarks.peers.environment`` to make them all, or let the benchmarks make what they need.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.driver import Arguments
from benchmarks.peers.machine import TUNED_ALLOCATOR

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".benchmark-envs"

PEERS: dict[str, tuple[str, ...]] = {
    "rectools": (
        "rectools[torch]==0.19.0",
        "torch==2.13.0",
        "pytorch-lightning==2.5.2",
        "numpy==1.26.4",
        "pandas==2.3.3",
    ),
    # Newer releases of the last four break RecBole: ray imports pkg_resources and np.bool8, pandas 3 refuses numpy 1.
    "recbole": (
        "recbole==1.2.1",
        "torch==2.13.0",
        "ray==2.6.3",
        "setuptools<81",
        "numpy==1.26.4",
        "pandas==2.3.3",
    ),
}
"""What pip installs for each peer."""

PYTHON = (3, 11)
"""The newest Python for which every pinned package is published."""


TIMEOUT = 1200
"""Seconds after which a driver has failed."""


def run_driver(driver: str, arguments: Arguments, *, peer: str | None = None, tuned: bool = False) -> dict[str, Any]:
    """Run a driver in a process of its own and read the line that it prints.

    Args:
        driver: module in ``benchmarks.peers``.
        arguments: what it is to measure.
        peer: whose environment it runs in; ours if left out.
        tuned: with the allocator tuned, as in `TUNED_ALLOCATOR`, or as it comes.

    Raises:
        RuntimeError: when it fails or takes too long, or when the environment cannot be made.
    """
    python = sys.executable if peer is None else str(interpreter(peer))
    command = [python, "-m", f"benchmarks.peers.{driver}", *arguments.command_line()]
    threads = str(arguments.threads)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in TUNED_ALLOCATOR},
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
        **(TUNED_ALLOCATOR if tuned else {}),
    }
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{driver} took more than {TIMEOUT} s") from error
    if done.returncode:
        raise RuntimeError(f"{driver} failed; to see it: {' '.join(command)}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def interpreter(peer: str) -> Path:
    """Return the Python of a peer's environment; make the environment when it is missing or its pins have changed.

    Raises:
        RuntimeError: when no Python of the right version is found, or a package cannot be installed.
    """
    folder = FOLDER / peer
    python = folder / "bin" / "python"
    done = folder / "installed.txt"  # written last, so that a broken installation is made anew
    pins = "\n".join(PEERS[peer]) + "\n"
    if done.is_file() and done.read_text() == pins:
        return python
    print(f"making the environment of {peer} in {folder} (a few minutes) …", file=sys.stderr, flush=True)
    _run([_base_python(), "-m", "venv", "--clear", str(folder)], peer)
    _run([str(python), "-m", "pip", "install", "--quiet", *PEERS[peer]], peer)
    done.write_text(pins)
    return python


def _base_python() -> str:
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    name = "python{}.{}".format(*PYTHON)
    if (found := shutil.which(name)) is None:
        raise RuntimeError(f"the peers need {name}, which is not on the path; install it, or run ours only")
    return found


def _run(command: list[str], peer: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cannot make the environment of {peer}: {' '.join(command)}\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    for name in PEERS:
        print(name, interpreter(name))
