"""What a run reads: the interactions that it names, cut as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from recdistill.data.dataset import Dataset
from recdistill.data.embedded import load_shop
from recdistill.data.interactions import Interactions, name_bad_row, read_interactions
from recdistill.data.splits import Split, last_basket, leave_one_out, random_split, time_cut
from recdistill.errors import SettingsError
from recdistill.runs.file import Run
from recdistill.runs.folder import check_data
from recdistill.runs.reports import Quiet, Report
from recdistill.runs.sections import SHOP, DataSettings

_N_SHOWN = 5
"""Bad rows that are told of."""


def load_dataset(run: Run, report: Report | None = None) -> Dataset:
    """Read the interactions that a run names, and report what was left out of them.

    Raises:
        SettingsError: when the data that ship are to be read otherwise than they are.
    """
    data = run.data
    if data.path == SHOP:
        return _shop(data)
    interactions = read_interactions(
        data.path,
        user=data.user,
        item=data.item,
        time=data.time or None,
        separator=data.separator,
        text_ids=data.text_ids,
        skip_bad_rows=data.skip_bad_rows,
    )
    if n := len(interactions.skipped):
        first = [f"{row['file']} {name_bad_row(row)}" for row in interactions.skipped.head(_N_SHOWN).to_dicts()]
        more = f"; and {n - _N_SHOWN:,} more" if n > _N_SHOWN else ""
        (report or Quiet()).say(f"{n:,} rows that cannot be used are left out: {'; '.join(first)}{more}")
    kept = interactions.deduplicate(data.duplicates).k_core(users=data.min_user, items=data.min_item)
    return kept.dataset(data.titles, item=data.titles_item, title=data.titles_title)


def _shop(data: DataSettings) -> Dataset:
    """Keep of the data that ship what the settings say; they have titles and columns of their own."""
    of_files = set(DataSettings.model_fields) - {"path", "duplicates", "min_user", "min_item"}
    if odd := sorted(name for name in of_files if getattr(data, name) != DataSettings.model_fields[name].default):
        raise SettingsError(
            f'[data]: path = "{SHOP}" names the data that ship, and {", ".join(odd)} only say how a file is read; '
            "leave them out, or give a file as path"
        )
    shop = load_shop()
    frame = {
        "user": shop.users.raw.gather(np.repeat(np.arange(shop.n_users), shop.sequences.lengths)),
        "item": shop.items.raw.gather(shop.sequences.items - 1),
        "time": pl.Series(shop.times),
    }
    kept = Interactions(pl.DataFrame(frame)).deduplicate(data.duplicates)
    kept = kept.k_core(users=data.min_user, items=data.min_item)
    return kept.dataset(pl.DataFrame({"item_id": shop.items.raw, "title": shop.titles}))


def load_split(run: Run, report: Report | None = None) -> Split:
    """Read the interactions that a run names, and cut them as it says; see `load_dataset`."""
    dataset, settings = load_dataset(run, report), run.split
    cuts: dict[str, Callable[[], Split]] = {
        "leave-one-out": lambda: leave_one_out(dataset, mask_seen=settings.mask_seen),
        "last-basket": lambda: last_basket(dataset, mask_seen=settings.mask_seen),
        "time-cut": lambda: time_cut(dataset, at=settings.at, valid_at=settings.valid_at, mask_seen=settings.mask_seen),
        "random": lambda: random_split(
            dataset, seed=settings.seed, file_order=settings.file_order, mask_seen=settings.mask_seen
        ),
    }
    return cuts[settings.protocol]()


def load_same_split(run: Run, folder: Path, report: Report | None = None) -> Split:
    """Do `load_split`, and make sure that the data are those of what was begun in the folder, if anything was.

    Raises:
        ArtefactError: when they are not.
    """
    split = load_split(run, report)
    check_data(folder, split.dataset)
    return split
