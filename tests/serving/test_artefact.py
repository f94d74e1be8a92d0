import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Dataset, IdMap, Sequences
from recdistill.errors import ArtefactError, DataError
from recdistill.models.base import Batch, Model, build_model
from recdistill.serving.artefact import WEIGHTS, size_of
from recdistill.serving.student import Student
from recdistill.settings import Settings


class NextConfig(Settings):
    """The model below has one setting."""

    max_len: int = 2


class Next(Model):
    """After item i comes i + 1, then i + 2, and so on around: scores can be read off by hand."""

    name = "next"
    Config = NextConfig

    def __init__(self, config: NextConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        eye = torch.eye(n_items)
        self.table = torch.nn.Parameter(torch.cat([torch.zeros(1, n_items), eye]))

    def encode(self, batch: Batch) -> Tensor:
        newest = batch.items[batch.last]
        steps = (torch.arange(1, self.n_items + 1) - newest[:, None]) % self.n_items
        steps[steps == 0] = self.n_items
        return -steps.float()

    def item_embeddings(self) -> Tensor:
        return self.table


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Model.registry, "next", Next)


@pytest.fixture
def student() -> Student:
    """Five items called a…e; after each comes the next letter."""
    titles = pl.Series(["Apple", "Bread", None, "Dates", "Eggs"])
    return Student(Next(NextConfig(), 5), IdMap(["a", "b", "c", "d", "e"], first=1), titles, "leave-one-out")


def names(student: Student, *histories: list[str], k: int = 5) -> list[str]:
    return ["".join(str(r.item) for r in top) for top in student.recommend(histories, k)]


def test_recommends_in_raw_ids_with_scores_and_titles(student: Student) -> None:
    top = student.recommend([["a"]], k=2)[0]
    assert [(r.item, r.score, r.title) for r in top] == [("b", -1.0, "Bread"), ("c", -2.0, None)]


def test_leaves_out_the_whole_history_though_the_model_reads_only_its_end(student: Student) -> None:
    """With max_len 2 the model does not see the first item; it must not be recommended all the same."""
    assert names(student, ["e", "a", "b"]) == ["cd"]


def test_recommends_seen_items_where_the_protocol_keeps_them(student: Student) -> None:
    student.mask_seen = False
    assert names(student, ["e", "a", "b"]) == ["cdeab"]


def test_answers_every_history_in_its_own_row(student: Student) -> None:
    assert names(student, ["a"], ["d", "c"], ["e"], k=2) == ["bc", "ea", "ab"]


def test_integer_ids_may_be_given_as_text(student: Student) -> None:
    """The command line only knows text."""
    student.items = IdMap([10, 20, 30, 40, 50], first=1)
    assert [r.item for r in student.recommend([["10"]], k=2)[0]] == [20, 30]


def test_an_unknown_item_is_refused_by_name(student: Student) -> None:
    with pytest.raises(DataError, match=r"history 2 holds items that the student does not know: \['x'\]"):
        student.recommend([["a"], ["a", "x"]])


def test_an_unknown_item_is_left_out_on_request(student: Student) -> None:
    assert student.recommend([["a", "x"]], unknown="skip") == student.recommend([["a"]])


@pytest.mark.parametrize("history", [[], ["x", "y"]])
def test_a_history_without_a_known_item_is_always_refused(student: Student, history: list[str]) -> None:
    with pytest.raises(DataError, match=r"history 1 of 1, .* has no item that the student knows"):
        student.recommend([history], unknown="skip")


def test_k_below_one_is_refused(student: Student) -> None:
    with pytest.raises(DataError, match="a list of 0 items was asked for"):
        student.recommend([["a"]], k=0)


@pytest.mark.parametrize("histories", ["ab", ["ab"], [b"ab"], ["a", ["a"]], [1, 2], [{"a"}], 7, [[["a"]]], [[None]]])
def test_a_history_that_is_no_list_of_ids_is_refused(student: Student, histories: Any) -> None:
    """A text would be read letter by letter, and answered as if these were items."""
    with pytest.raises(DataError, match=r"must be a list of|must be an integer or a text"):
        student.recommend(histories)


def test_a_list_ends_with_the_catalogue_however_long_it_may_be(student: Student) -> None:
    """Room for all that was asked for would be terabytes."""
    assert names(student, ["a"], k=10**12) == ["bcde"]
    mf = for_users("mf")
    assert mf.recommend_for_users(["Ann"], 10**12) == mf.recommend_for_users(["Ann"], 12)


def test_no_histories_give_no_lists(student: Student) -> None:
    assert student.recommend([]) == []


def test_model_and_items_must_belong_together(student: Student) -> None:
    with pytest.raises(ArtefactError, match="5 items and the id map 2"):
        Student(student.model, IdMap(["a", "b"], first=1))


def test_saved_and_loaded_gives_the_same_answers(student: Student, tmp_path: Path) -> None:
    loaded = Student.load(student.save(tmp_path / "new" / "student"))
    histories = [["a"], ["b", "e"], ["c", "d", "a"]]
    assert loaded.recommend(histories) == student.recommend(histories)
    assert (loaded.protocol, loaded.mask_seen, loaded.model.config) == ("leave-one-out", True, NextConfig())


def test_a_loaded_student_does_not_drop_out(tmp_path: Path) -> None:
    model = build_model("sasrec", 5, {"dim": 8, "n_blocks": 1, "dropout": 0.5})
    Student(model, IdMap(["a", "b", "c", "d", "e"], first=1)).save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student").model
    batch = Batch.from_sequences(Sequences.from_lists([[1, 2, 3]]))
    assert torch.equal(loaded.scores(batch), loaded.scores(batch))


def test_the_folder_alone_is_enough(student: Student, tmp_path: Path) -> None:
    """It is carried to another machine: nothing in it may point back."""
    student.save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert names(Student.load(tmp_path / "there"), ["a"]) == ["bcde"]


def test_integer_ids_stay_integers(student: Student, tmp_path: Path) -> None:
    student.items, student.titles = IdMap([10, 20, 30, 40, 50], first=1), None
    top = Student.load(student.save(tmp_path)).recommend([[50]], k=1)[0]
    assert top[0][::2] == (10, None)


def test_a_run_folder_stands_for_the_student_in_it(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path / "student")
    assert names(Student.load(tmp_path), ["a"]) == ["bcde"]


def test_saving_again_replaces_the_student_and_leaves_nothing_else(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path)
    student.protocol = "last basket"
    student.save(tmp_path)
    assert Student.load(tmp_path).protocol == "last basket"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.parquet", "model.json", "model.safetensors"]


def test_its_size_is_that_of_its_own_files(student: Student, tmp_path: Path) -> None:
    folder = student.save(tmp_path / "student")
    size = sum(file.stat().st_size for file in folder.iterdir())
    (folder / f".{WEIGHTS}.partial").write_bytes(b"what a killed process left")
    assert size_of(folder) == size


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no saved student in .*/nowhere: it does not exist"):
        Student.load(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match=r"neither it nor its student/ holds a model\.json"):
        Student.load(tmp_path)


def test_a_missing_file_is_named(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(ArtefactError, match=r"lacks items\.parquet; copy the whole folder"):
        Student.load(tmp_path)


def test_a_damaged_file_is_named(student: Student, tmp_path: Path) -> None:
    student.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match=r"model\.safetensors is damaged"):
        Student.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"model": "nexr"}, "unknown model 'nexr'; did you mean 'next'"),
        ({"config": {"max_lem": 3}}, "did you mean 'max_len'"),
        ({"extra": 1}, "unknown setting 'extra'"),
    ],
)
def test_a_foreign_card_is_explained(student: Student, tmp_path: Path, change: dict[str, object], said: str) -> None:
    card = student.save(tmp_path) / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(ArtefactError, match=said):
        Student.load(tmp_path)


def test_weights_of_another_size_are_refused(student: Student, tmp_path: Path) -> None:
    """Files that are whole, but from two different students."""
    other = Student(Next(NextConfig(), 4), IdMap(["a", "b", "c", "d"], first=1))
    student.save(tmp_path / "five")
    other.save(tmp_path / "four")
    card, foreign = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("five", "four"))
    card["sha256"]["items.parquet"] = foreign["sha256"]["items.parquet"]
    (tmp_path / "five" / "model.json").write_text(json.dumps(card))
    shutil.copy(tmp_path / "four" / "items.parquet", tmp_path / "five")
    with pytest.raises(ArtefactError, match="size mismatch for table"):
        Student.load(tmp_path / "five")


def test_a_card_that_is_not_json_is_explained(student: Student, tmp_path: Path) -> None:
    (student.save(tmp_path) / "model.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"model\.json is not a student"):
        Student.load(tmp_path)


def test_a_place_that_cannot_be_written_is_one_clear_error(student: Student, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtefactError, match=r"cannot write the student to .*/file"):
        student.save(tmp_path / "file")


BOUGHT = [[1, 2], [2, 3, 2, 5], [2]]
"""What Ann, Bob and Cy bought, of five items called a…e: b four times, the others once at most."""


def for_users(name: str, users: list[str] | list[int] | None = None, *, trained: int = 3) -> Student:
    """A student that reads the user; the model sees the first item of some only, the rest was bought later."""
    sequences = Sequences.from_lists(BOUGHT)
    dataset = Dataset(
        IdMap(users or ["Ann", "Bob", "Cy"], first=0), IdMap(["a", "b", "c", "d", "e"], first=1), sequences
    )
    train = Sequences.from_lists(row[: user < trained] for user, row in enumerate(BOUGHT))
    return Student.of(build_model(name, 5, {"dim": 4}, train=train), dataset, train=train)


def ordered(student: Student, user: int) -> list[str]:
    """Return all items as the model ranks them for a user by their dense number."""
    with torch.no_grad():
        scores = student.model.scores(Batch(torch.tensor([1]), torch.tensor([0, 1]), torch.tensor([user])))[0]
    return [str(student.items.raw[item - 1]) for item in scores.argsort(descending=True).tolist() if item]


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
def test_users_are_answered_by_name_without_what_they_took(name: str) -> None:
    student = for_users(name)
    lists = student.recommend_for_users(["Cy", "Ann", "Cy"], k=5)
    cy = [item for item in ordered(student, 2) if item != "b"]
    ann = [item for item in ordered(student, 0) if item not in ("a", "b")]
    assert [[r.item for r in each] for each in lists] == [cy, ann, cy]
    student.mask_seen = False
    assert [r.item for r in student.recommend_for_users(["Bob"], k=5)[0]] == ordered(student, 1)


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
def test_a_saved_student_knows_its_users_and_answers_the_same(name: str, tmp_path: Path) -> None:
    student = for_users(name)
    student.save(tmp_path)
    files = ["items.parquet", "model.json", "model.safetensors", "users.parquet"]
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    loaded = Student.load(tmp_path)
    assert loaded.recommend_for_users(["Bob", "Ann"]) == student.recommend_for_users(["Bob", "Ann"])
    assert loaded.users is not None
    assert [row.tolist() for row in loaded.users.taken] == BOUGHT


def test_integer_users_may_be_given_as_text(tmp_path: Path) -> None:
    student = Student.load(for_users("mf", users=[7, 8, 9]).save(tmp_path))
    assert student.recommend_for_users(["8"]) == student.recommend_for_users([8])


def test_an_unknown_user_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"1 of 2 users are unknown to the student, for example \['Dan'\].*'popular'"):
        for_users("mf").recommend_for_users(["Ann", "Dan"])


def test_an_unknown_user_gets_the_most_popular_items_on_request() -> None:
    student = for_users("mf")
    ann, dan = student.recommend_for_users(["Ann", "Dan"], k=3, unknown_users="popular")
    assert ann == student.recommend_for_users(["Ann"], k=3)[0]
    assert [(r.item, r.score) for r in dan] == [("b", 4.0), ("a", 1.0), ("c", 1.0)]


def test_no_users_give_no_lists_and_k_is_checked() -> None:
    assert for_users("mf").recommend_for_users([]) == []
    with pytest.raises(DataError, match="a list of 0 items"):
        for_users("mf").recommend_for_users(["Dan"], k=0, unknown_users="popular")


@pytest.mark.parametrize("users", ["ann", b"ann", 7])
def test_users_that_are_no_list_are_refused(users: Any) -> None:
    with pytest.raises(DataError, match="the users must be a list of user ids"):
        for_users("mf").recommend_for_users(users)


def test_histories_and_users_are_not_mixed_up(student: Student) -> None:
    with pytest.raises(DataError, match="model 'next' answers for histories, not for users: use recommend"):
        student.recommend_for_users(["Ann"])
    with pytest.raises(DataError, match="model 'mf' answers for users, not for histories: use recommend_for_users"):
        for_users("mf").recommend([["a"]])


def test_a_model_that_reads_the_user_needs_users(student: Student, tmp_path: Path) -> None:
    both = for_users("mf")
    with pytest.raises(ArtefactError, match="model 'mf' reads the user; give users"):
        Student(both.model, both.items)
    with pytest.raises(ArtefactError, match="model 'next' reads the history; give no users"):
        Student(student.model, student.items, users=both.users)
    both.save(tmp_path)
    (tmp_path / "users.parquet").unlink()
    with pytest.raises(ArtefactError, match=r"lacks users\.parquet"):
        Student.load(tmp_path)


def test_as_many_users_as_the_model_knows() -> None:
    both = for_users("mf")
    other = build_model("mf", 5, {"dim": 4}, train=Sequences.empty(2))
    with pytest.raises(ArtefactError, match="the model knows 2 users and the id map 3"):
        Student(other, both.items, users=both.users)


def test_a_student_saved_over_another_leaves_no_users_behind(student: Student, tmp_path: Path) -> None:
    for_users("mf").save(tmp_path)
    student.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.parquet", "model.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["mf", "lightgcn"])
def test_a_user_of_whom_nothing_was_trained_on_is_unknown(name: str, tmp_path: Path) -> None:
    """Cy began after a time cut: the model has drawn a vector for Cy at random, and nothing has changed it."""
    both = for_users(name, trained=2)
    for student in (both, Student.load(both.save(tmp_path))):
        with pytest.raises(DataError, match=r"1 of 2 users are unknown to the student, for example \['Cy'\]: it was"):
            student.recommend_for_users(["Ann", "Cy"])
        ann, cy = student.recommend_for_users(["Ann", "Cy"], k=3, unknown_users="popular")
        assert ann == student.recommend_for_users(["Ann"], k=3)[0]
        assert [(r.item, r.score) for r in cy] == [("a", 1.0), ("c", 1.0), ("e", 1.0)]
        student.mask_seen = False
        assert student.recommend_for_users(["Cy"], k=1, unknown_users="popular")[0][0].item == "b"


def test_users_of_an_earlier_version_all_count_as_known(tmp_path: Path) -> None:
    for_users("mf", trained=2).save(tmp_path)
    file, card = tmp_path / "users.parquet", json.loads((tmp_path / "model.json").read_text())
    pl.read_parquet(file).drop("trained").write_parquet(file)
    del card["origin"]
    card["sha256"]["users.parquet"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "model.json").write_text(json.dumps(card))
    loaded = Student.load(tmp_path)
    assert loaded.origin is None
    assert len(loaded.recommend_for_users(["Cy"])[0]) == 4


def test_a_student_says_what_it_was_trained_on(tmp_path: Path) -> None:
    """The same interactions in another split are told from others."""
    one, other = for_users("mf"), for_users("mf", trained=2)
    assert one.origin is not None
    assert other.origin is not None
    assert one.origin.data == other.origin.data
    assert one.origin.train != other.origin.train
    assert Student.load(one.save(tmp_path)).origin == one.origin


def test_who_starts_from_a_student_keeps_the_graph_of_its_own_training_data() -> None:
    """It would learn new interactions, and answer, by averages over old ones."""
    start, train = for_users("lightgcn"), Sequences.from_lists(BOUGHT)
    model, expected = (build_model("lightgcn", 5, {"dim": 4}, train=train, seed=1) for _ in range(2))
    start.hand_on(model)
    with torch.no_grad():
        expected.get_parameter("embedding.weight").copy_(start.model.get_parameter("embedding.weight"))
    torch.testing.assert_close(model.item_embeddings(), expected.item_embeddings())
