"""``recdistill recommend``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recdistill.errors import SettingsError

if TYPE_CHECKING:
    from recdistill.data.dataset import RawId


def recommend(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of a saved student.", show_default=False)],
    history: Annotated[
        str | None, typer.Option(help="Item ids with commas between them, oldest first.", show_default=False)
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="A user of the student's or the run's data.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items to recommend.", min=1)] = 10,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out items that the student does not know.")
    ] = False,
    popular_if_unknown: Annotated[
        bool,
        typer.Option(
            "--popular-if-unknown", help="Print the most popular items for a --user of whom nothing was trained on."
        ),
    ] = False,
) -> None:
    """Print what a saved student recommends: id, score and title, best first.

    A student that reads the user, such as mf, is asked with --user, any other with --history; a run's folder knows the
    histories of its users, so that there --user is enough for both.
    """
    from recdistill.serving.student import Student
    from recdistill.tables import print_recommendations

    if (history is None) == (user is None):
        raise SettingsError("give either --history with item ids, or --user with a user of the run's data")
    student = Student.load(run)
    if student.users is not None and user is not None:
        wanted = student.recommend_for_users([user], k, unknown_users="popular" if popular_if_unknown else "refuse")
        print_recommendations(wanted[0])
        return
    if popular_if_unknown:
        raise SettingsError("--popular-if-unknown goes with --user and a student that reads the user, such as mf")
    items: list[RawId]
    if history is not None:
        items = [item.strip() for item in history.split(",") if item.strip()]
    else:
        items = _history_of(user or "", run)
    print_recommendations(student.recommend([items], k, unknown="skip" if skip_unknown else "refuse")[0])


def _history_of(user: str, folder: Path) -> list[RawId]:
    """Return all items of a user in the data that a run was trained on."""
    from recdistill.runs.data import load_dataset
    from recdistill.runs.file import Run
    from recdistill.runs.folder import RUN

    if not (folder / RUN).is_file():
        raise SettingsError(f"{folder} is no run's folder, so it does not know whose data it was; use --history")
    dataset = load_dataset(Run.read(folder / RUN))
    row = int(dataset.users.encode([user], what="user")[0])
    return dataset.items.decode(dataset.sequences[row])
