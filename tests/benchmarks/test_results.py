from pathlib import Path

import pytest
from benchmarks.results import QUALITY, SPEED, ResultTable

from recdistill.errors import DataError

ROW = {"system": "recdistill", "dataset": "ml-1m", "setting": "full-softmax/stock", "repeat": 1, "seconds": 8.912345678}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "speed.csv"


def test_a_row_is_on_disk_at_once(path: Path) -> None:
    ResultTable(path, SPEED).append(ROW)
    assert path.read_text().splitlines() == [
        "system,version,dataset,setting,repeat,seconds,peak_mb,ratio",
        "recdistill,,ml-1m,full-softmax/stock,1,8.91235,,",
    ]


def test_a_later_run_knows_what_was_done(path: Path) -> None:
    ResultTable(path, SPEED).append(ROW)
    later = ResultTable(path, SPEED)
    assert later.already_done(system="recdistill", dataset="ml-1m", repeat=1)
    assert not later.already_done(system="recdistill", dataset="ml-1m", repeat=2)
    later.append({**ROW, "repeat": 2})
    assert len(later.rows()) == 2


def test_half_a_row_of_a_killed_run_is_dropped(path: Path) -> None:
    table = ResultTable(path, SPEED)
    table.append(ROW)
    whole = path.read_text()
    path.write_text(whole + "recdistill,,ml-1m,full-sof")
    reopened = ResultTable(path, SPEED)
    assert path.read_text() == whole
    assert len(reopened.rows()) == 1


def test_a_file_killed_within_its_header_begins_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("system,ver")
    assert ResultTable(path, SPEED).rows() == []
    assert path.read_text() == ",".join(SPEED) + "\n"


def test_text_with_commas_survives(path: Path) -> None:
    table = ResultTable(path, QUALITY)
    table.append({"method": "kd", "variant": 'a "b", c', "value": 0.0519})
    assert table.find(variant='a "b", c')[0]["value"] == "0.0519"


def test_a_file_with_other_columns_is_refused(path: Path) -> None:
    ResultTable(path, SPEED)
    with pytest.raises(DataError, match="move it away"):
        ResultTable(path, QUALITY)


@pytest.mark.parametrize("row", [{"sytem": "recdistill"}, {**ROW, "minutes": 3}])
def test_an_unknown_column_is_refused(path: Path, row: dict[str, object]) -> None:
    table = ResultTable(path, SPEED)
    with pytest.raises(DataError, match="has no column"):
        table.append(row)
    with pytest.raises(DataError, match="has no column"):
        table.already_done(**row)
    assert table.rows() == []


def test_columns_are_those_of_the_design() -> None:
    assert ",".join(SPEED) == "system,version,dataset,setting,repeat,seconds,peak_mb,ratio"
    assert ",".join(QUALITY) == (
        "dataset,split,teacher,student,regime,access,method,variant,seed,stratum,metric,k,value,users,minutes,commit"
    )
