"""What a run's folder holds: who may use it, what is written there, and what is read back.

It holds ``run.json`` (every setting, versions), ``metrics.jsonl`` (a line an epoch), ``student/`` (the artefact),
``epochs/`` (artefacts of the student as it was after ``keep_epochs``), ``ledger.sqlite`` (a teacher's paid answers),
``evaluation.npz`` (the rank of every test target), ``groups.npz`` (who is head and tail) and ``results.json``, written
last: with it, the run is finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import platform
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from recdistill import __version__
from recdistill.data.dataset import Dataset
from recdistill.data.groups import Groups
from recdistill.errors import ArtefactError, SettingsError
from recdistill.evaluation.results import Evaluation
from recdistill.files import partial_of, write_whole
from recdistill.models.base import Model
from recdistill.runs.file import Run
from recdistill.runs.sections import HttpTeacherSettings
from recdistill.serving.artefact import FOLDER as STUDENT
from recdistill.serving.student import Student
from recdistill.training import processes
from recdistill.training.checkpoints import CHECKPOINT

if sys.platform != "win32":
    import fcntl

_log = logging.getLogger("recdistill.runs.folder")

RUN, EVALUATION, GROUPS, RESULTS, LEDGER = "run.json", "evaluation.npz", "groups.npz", "results.json", "ledger.sqlite"
EPOCHS = "epochs"


def claim(folder: Path, run: Run) -> None:
    """Make sure that ``folder`` is free or holds this very run.

    Raises:
        SettingsError: when it holds another run, or something that is no run.
    """
    if (folder / RUN).is_file():
        before = Run.read(folder / RUN)
        if differences := before.differences(run):
            raise SettingsError(
                f"{folder} holds a run with other settings (there and here: {'; '.join(differences)}); "
                f"choose another folder with --out{answers_elsewhere(before, folder)}"
            )
    elif folder.exists() and not (folder.is_dir() and set(folder.iterdir()) <= {partial_of(folder / RUN)}):
        raise SettingsError(f"{folder} is there already and holds no run; choose another folder with --out")


def answers_elsewhere(run: Run, folder: Path) -> str:
    """Say, at the end of a sentence, how a run in another folder gets at the answers that the one here has paid for.

    Args:
        run: the one that the folder holds.
        folder: where.
    """
    files = list(dict.fromkeys(str(ledger_file(api, folder)) for api in run.apis))
    if not files:
        return ""
    named = f"--set teacher.ledger={files[0]}"
    if not isinstance(run.teacher, HttpTeacherSettings):
        named = f"name {' and '.join(files)} as ledger of its members"
    return f", and {named} to use the answers already paid for"


def ledger_file(settings: HttpTeacherSettings, folder: Path) -> Path:
    """Return where a run in ``folder`` keeps the answers of an API."""
    return Path(settings.ledger) if settings.ledger else folder / LEDGER


def note(folder: Path, run: Run, dataset: Dataset) -> None:
    """Write down what is about to be done, and on which data."""
    packages = ("torch", "numpy", "polars")
    about = {
        "settings": run.dump(),
        "data": fingerprint(dataset),
        "versions": {"recdistill": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
        "machine": platform.platform(),
    }
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / RUN, about)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder if it is not there, and keep other processes from running in it until the end of the block.

    The system lets the next one in when a process dies. Of several processes of one run (``torchrun``) the first stands
    for all. Nobody is kept out on Windows, and where the file system knows no locks.

    Raises:
        ArtefactError: when another process is using the folder, or it cannot be made.
    """
    if sys.platform == "win32" or processes.rank() != 0:
        yield
        return
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtefactError(
                f"another process is using {folder}; wait until it has ended, or choose another folder"
            ) from error
        except OSError:
            _log.info("%s cannot be locked here, so two runs in it would not notice each other", folder)
        yield
    finally:
        os.close(handle)


def check_data(folder: Path, dataset: Dataset) -> None:
    """Make sure that the data are those of what was begun in the folder, if anything was.

    Raises:
        ArtefactError: when they are not, or when it is not noted which they were.
    """
    if not (folder / RUN).is_file():
        return
    try:
        before = json.loads((folder / RUN).read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{folder / RUN} does not say which data the run began with ({_why(error)}); bring the file back as it "
            "was, or choose another folder"
        ) from error
    if before != (now := fingerprint(dataset)):
        raise ArtefactError(
            f"the data are not those of the run in {folder}: {before} then, {now} now; "
            "bring the old data back, or choose another folder"
        )


def fingerprint(dataset: Dataset) -> str:
    """Say how many users, items and interactions there are, and hashes of their order, of the ids and of the times."""
    size = f"{dataset.n_users:,} users, {dataset.n_items:,} items, {dataset.n_interactions:,} interactions"
    ids = json.dumps([dataset.users.raw.to_list(), dataset.items.raw.to_list()])
    times = "unknown" if dataset.times is None else _hash(dataset.times.tobytes())
    return f"{size}, {dataset.sequences.digest()}, ids {_hash(ids.encode())}, times {times}"


def _hash(held: bytes) -> str:
    return hashlib.blake2b(held, digest_size=8).hexdigest()


def save_results(folder: Path, evaluation: Evaluation, groups: Groups, facts: dict[str, Any]) -> None:
    """Write what makes a run finished.

    Raises:
        ArtefactError: when the folder cannot be written.
    """
    with _writing(folder):
        evaluation.save(folder / EVALUATION)
        _save_groups(folder / GROUPS, groups)
        _write_json(folder / RESULTS, facts)


def check_not_lost(folder: Path) -> None:
    """Make sure that a run without results was not finished once, so that no trained student is written over.

    Raises:
        ArtefactError: when its student is there, and no checkpoint that led to it.
    """
    if (folder / STUDENT).is_dir() and not (folder / CHECKPOINT).is_file():
        raise ArtefactError(
            f"{folder} has lost its {RESULTS}, which says that the run is finished; bring the file back, or run {RUN} "
            f"anew in another folder. The student in {folder / STUDENT} can be used without it."
        )


def read_finished(folder: Path) -> tuple[Run, dict[str, Any]]:
    """Return the settings and the facts of a finished run.

    Raises:
        ArtefactError: when the folder holds no run, one that is not finished, or one with damaged results.
    """
    if not (folder / RUN).is_file():
        raise ArtefactError(f"{folder} holds no run: it has no {RUN}; give the folder that a run was written to")
    if not (folder / RESULTS).is_file():
        check_not_lost(folder)
        raise ArtefactError(f"the run in {folder} is not finished; start it again with the same settings to go on")
    try:
        facts: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise TypeError("they are not named")
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(
            f"{folder / RESULTS} cannot be read as the results of a run ({_why(error)}); bring the file back as it "
            f"was, or run {RUN} anew in another folder. The student in {folder / STUDENT} can be used without it."
        ) from error
    return Run.read(folder / RUN), facts


def load_groups(folder: Path) -> Groups:
    """Read who is head and tail.

    Raises:
        ArtefactError: when there is no such file or it is damaged.
    """
    try:
        with (folder / GROUPS).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return Groups(
                head_users=file["head_users"],
                bands=file["bands"],
                head_items=file["head_items"],
                user_cut=int(file["user_cut"]),
                band_cuts=tuple(file["band_cuts"].tolist()),
                item_cut=int(file["item_cut"]),
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, BadZipFile, zlib.error) as error:
        raise ArtefactError(
            f"{folder / GROUPS} cannot be read as head and tail of a run ({_why(error)}); evaluate the run again to "
            "write it anew"
        ) from error


def kept_models(folder: Path, epochs: Iterable[int]) -> list[Model]:
    """Load what a finished run has kept of its student from before its best epoch, which is the student itself.

    Args:
        folder: the run's.
        epochs: of its ``keep_epochs``, in any order.

    Raises:
        ArtefactError: when there is no finished run.
        SettingsError: when one of these epochs was not kept, or came later than the best.
    """
    if not (wanted := sorted(set(epochs))):
        return []
    best = read_finished(folder)[1]["best_epoch"]
    kept = sorted(int(path.name) for path in (folder / EPOCHS).glob("[0-9]*") if int(path.name) < best)
    if missing := [epoch for epoch in wanted if epoch not in kept]:
        raise SettingsError(
            f"{folder} has no earlier model of epochs {missing}; from before its best epoch, {best}, it has kept "
            f"{kept}. Name these as earlier, or train it in a new folder with other training.keep_epochs."
        )
    return [Student.load(folder / EPOCHS / str(epoch)).model for epoch in wanted]


def finite(value: Any) -> Any:
    """Return plain values with ``None`` for every number that JSON cannot write: NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _why(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtefactError(
            f"cannot write to {folder}: {error}. Free the disk, or choose another folder; what was finished is kept."
        ) from error


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=2, allow_nan=False).encode())


def _save_groups(path: Path, groups: Groups) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = asdict(groups)
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())
