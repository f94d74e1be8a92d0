"""Which part of a reply a path names."""

from typing import Any

import pytest

from recdistill.errors import TeacherError
from recdistill.teachers.paths import Path


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("items[*]", {"items": [1, 2]}, [1, 2]),
        ("[*]", [1, 2], [1, 2]),
        (".", 5, [5]),
        (".id", {"id": 5}, [5]),
        ("metadata.score", {"metadata": {"score": 0.5}}, [0.5]),
        ("results[*].hits[*]", {"results": [{"hits": [1]}, {"hits": [2, 3]}]}, [1, 2, 3]),
        ("results[1][0]", {"results": [[1], [2]]}, [2]),
        ("outputs[name=ids].data[*]", {"outputs": [{"name": "scores"}, {"name": "ids", "data": [4]}]}, [4]),
        ("x-id", {"x-id": None}, [None]),
        ("items[*].id", {"items": []}, []),
    ],
)
def test_a_path_leads_to_values(path: str, value: Any, found: list[Any]) -> None:
    assert Path.parse(path).all(value) == found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("items[*]", {"error": "no", "code": 3}, "an object with 'items', but it is an object with 'error', 'code'"),
        ("items[*]", {"items": {}}, "a list, but it is an empty object"),
        ("items[*].id", {"items": ["a"]}, "an object with 'id', but it is text"),
        ("[2]", [1, 2], "a list of more than 2, but it is a list of 2"),
        (
            "out[name=ids]",
            {"out": [{"name": "x"}]},
            "a list with an object whose 'name' is 'ids', but it is a list of 1",
        ),
        ("id", None, "an object with 'id', but it is null"),
        ("id", True, "but it is true or false"),
        ("id", 1.5, "but it is a number"),
        ("id", [], "but it is an empty list"),
        ("z", dict.fromkeys("abcdefg", 0), "with 'a', 'b', 'c', 'd', 'e', …"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_and_what_is_there(path: str, value: Any, said: str) -> None:
    with pytest.raises(TeacherError) as caught:
        Path.parse(path).all(value)
    assert f"nothing at {path!r}: there should be " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("path", ["items[", "items[*", "a..b", "[x]", "items[*]]", "[-1]"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no path, from"):
        Path.parse(path)
