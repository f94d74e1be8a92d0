"""Ids as the API writes them."""

from pathlib import Path as File
from typing import Any

import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError
from recdistill.teachers.answers import Answer
from recdistill.teachers.http import HttpTeacher

from .talking import URL


def test_a_format_turns_ids_both_ways() -> None:
    teacher = HttpTeacher(IdMap([5, 6, 7], first=1), url=URL, item_format="item-{id}", exclude_history=False)
    assert teacher.requests(Sequences.from_lists([[1, 3]]))[0].history == ["item-5", "item-7"]
    listed = teacher.ranking({0: Answer(["item-7", "product-6", "5", "item-6"])}, Sequences.from_lists([[1]]), 4)
    assert listed.items.tolist() == [[3, 2, 0, 0]]
    assert teacher.dropped["unknown"] == 2


def test_a_file_turns_ids_both_ways(tmp_path: File) -> None:
    (tmp_path / "ids.csv").write_text("api_id,id,title\nsku9,7,Hat\nsku8,5,Cap\nsku7,6,Bag\nsku6,4,Old\n")
    teacher = HttpTeacher(IdMap([5, 6, 7], first=1), url=URL, item_file=str(tmp_path / "ids.csv"))
    assert teacher.requests(Sequences.from_lists([[1, 3]]))[0].history == ["sku8", "sku9"]
    assert teacher.ranking({0: Answer(["sku9", "sku6"])}, Sequences.from_lists([[1]]), 2).items.tolist() == [[3, 0]]


@pytest.mark.parametrize("name", ["ids.csv", "ids.parquet"])
@pytest.mark.parametrize(("settings", "sent"), [({}, [12, 11]), ({"item_format": "{id}"}, ["12", "11"])])
def test_integers_of_a_file_are_sent_as_such_unless_a_format_makes_them_text(
    tmp_path: File, name: str, settings: dict[str, Any], sent: list[int | str]
) -> None:
    frame = pl.DataFrame({"id": ["hat", "cap"], "api_id": [11, 12]})
    frame.write_csv(tmp_path / name) if name.endswith("csv") else frame.write_parquet(tmp_path / name)
    teacher = HttpTeacher(IdMap(["hat", "cap"], first=1), url=URL, item_file=str(tmp_path / name), **settings)
    assert teacher.requests(Sequences.from_lists([[2, 1]]))[0].history == sent
    assert teacher.ranking({0: Answer(sent[1:])}, Sequences.from_lists([[2]]), 1).items.tolist() == [[1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,api_id\n5,1.5\n6,2\n7,3\n", "an api_id is .1.5., a decimal number; ids are integers or strings"),
        ("id,api_id\n5,x\n", "gives no api_id for 2 of 3 items, for example .*6.*7"),
        ("id,api_id\n5,x\n6,x\n7,y\n", "each api_id once, but names one twice"),
        ("id,api_id\n5,x\n5,y\n6,z\n7,w\n", "each id and each api_id once"),
    ],
)
def test_a_file_of_ids_that_leaves_doubts_is_refused(tmp_path: File, content: str, said: str) -> None:
    (tmp_path / "ids.csv").write_text(content)
    with pytest.raises(SettingsError, match=said):
        HttpTeacher(IdMap([5, 6, 7], first=1), url=URL, item_file=str(tmp_path / "ids.csv"))
