"""The loop learns, stops, resumes to the bit, and says clearly why it cannot go on."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TrainingError
from recdistill.losses import precision
from recdistill.methods.base import Method, Setting, TrainingBatch, build_method
from recdistill.methods.supervised import Supervised
from recdistill.models.base import Model, build_model
from recdistill.training.checkpoints import CHECKPOINT, METRICS
from recdistill.training.loop import fit
from recdistill.training.progress import EpochRow, Fit
from recdistill.training.settings import TrainerSettings

from ..far import far_device

ROWS = [[(user + step) % 9 + 1 for step in range(2 + user % 5)] for user in range(40)]


def _fit(
    folder: Path | None = None,
    *,
    method: Method | None = None,
    values: list[float] | None = None,
    started: bool = False,
    keep: Callable[[int, Model], None] | None = None,
    dropout: float = 0.3,
    **settings: Any,
) -> tuple[Model, Fit]:
    student = build_model("sasrec", 9, {"dim": 8, "max_len": 5, "dropout": dropout})
    setting = Setting(Sequences.from_lists(ROWS), np.arange(len(ROWS)), 9)
    script = iter(values or [])
    result = fit(
        student,
        method or build_method("supervised"),
        setting,
        TrainerSettings(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.01, **settings}),
        validate=lambda model: next(script, 0.5),
        started=started,
        keep=keep,
        folder=folder,
    )
    return student, result


def _same(first: Model, second: Model) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_same_seed_gives_the_same_weights() -> None:
    assert _same(_fit(seed=3)[0], _fit(seed=3)[0])
    assert not _same(_fit(seed=3)[0], _fit(seed=4)[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_learn_the_same() -> None:
    plain, compiled = _fit(epochs=1)[1], _fit(epochs=1, compile=True)[1]
    assert compiled.rows[0].parts == pytest.approx(plain.rows[0].parts, rel=1e-5)


def test_the_loss_falls() -> None:
    rows = _fit(epochs=20, validate_every=20)[1].rows
    assert rows[-1].parts["label"] < 0.7 * rows[0].parts["label"]
    assert rows[0].parts["label"] == pytest.approx(math.log(9), rel=0.1)  # an untrained student knows nothing


def test_the_best_weights_are_kept_and_patience_ends_training() -> None:
    student, result = _fit(epochs=50, patience=3, values=[0.1, 0.3, 0.2, 0.3, 0.1, 0.9])
    assert (result.best_epoch, result.best_value, result.epochs, result.stopped_early) == (2, 0.3, 5, True)
    assert _same(student, _fit(epochs=2, values=[0.1, 0.3])[0])


def test_what_a_student_began_with_stays_where_no_epoch_is_as_good() -> None:
    student, result = _fit(epochs=3, started=True, values=[0.4, 0.1, 0.3, 0.2])
    assert _same(student, build_model("sasrec", 9, {"dim": 8, "max_len": 5}))
    assert (result.start_value, result.best_value, result.best_epoch, result.epochs) == (0.4, 0.4, 0, 3)


def test_an_epoch_as_good_as_the_start_is_kept_and_patience_counts_from_it() -> None:
    """A student that is worse at first, as most are that learn something new, is given its time."""
    student, result = _fit(epochs=9, started=True, patience=2, values=[0.4, 0.1, 0.2, 0.3, 0.4, 0.3, 0.2, 0.9])
    assert (result.start_value, result.best_value, result.best_epoch, result.epochs) == (0.4, 0.4, 4, 6)
    assert _same(student, _fit(epochs=4, values=[0.1, 0.2, 0.3, 0.4])[0])


def test_a_stopped_run_still_knows_what_its_student_began_with(tmp_path: Path) -> None:
    _stop_after(tmp_path, epochs=2, values=[0.1, 0.3])
    student, result = _fit(tmp_path, epochs=5, started=True, values=[0.4, 0.2, 0.3, 0.2])
    assert _same(student, build_model("sasrec", 9, {"dim": 8, "max_len": 5}))
    assert (result.start_value, result.best_epoch, result.epochs) == (0.4, 0, 5)


def test_what_is_kept_of_an_epoch_is_the_student_after_it() -> None:
    """Not the best until then, and not what training made of it later."""
    kept: dict[int, Model] = {}
    _fit(
        epochs=4,
        values=[0.4, 0.3, 0.2, 0.1],
        keep_epochs=(2, 4),
        keep=lambda n, model: kept.update({n: deepcopy(model)}),
    )
    assert list(kept) == [2, 4]
    assert _same(kept[2], _fit(epochs=2, values=[0.1, 0.2])[0])


def test_an_epoch_that_never_comes_cannot_be_kept() -> None:
    with pytest.raises(SettingsError, match="keep_epochs names epoch 20, but training ends after 10"):
        TrainerSettings.parse({"epochs": 10, "keep_epochs": [5, 20]})


def test_patience_counts_validations_not_epochs() -> None:
    _, result = _fit(epochs=50, patience=2, validate_every=3, values=[0.2, 0.1, 0.1, 0.9])
    assert (result.best_epoch, result.epochs) == (3, 9)
    assert [row.validation for row in result.rows[:3]] == [None, None, 0.2]


def test_warm_up_and_cosine_follow_their_formula() -> None:
    rows = _fit(epochs=4, learning_rate=1.0, warmup_steps=3, schedule="cosine", clip_norm=0.001)[1].rows
    n_steps = math.ceil(40 / 16)  # every user has two items
    at = [epoch * n_steps - 1 for epoch in range(1, 5)]
    last = 4 * n_steps
    expected = [(s + 1) / 3 if s < 3 else 0.5 * (1 + math.cos(math.pi * (s - 3) / (last - 3))) for s in at]
    assert [row.learning_rate for row in rows] == pytest.approx(expected)


def test_a_model_that_reads_the_user_has_nothing_to_shorten() -> None:
    rows = Sequences.from_lists(ROWS)
    setting = Setting(rows, np.arange(len(ROWS)), 9)
    student = build_model("mf", 9, {"dim": 4}, train=rows)
    with pytest.raises(SettingsError, match="set shorten to 0"):
        fit(student, build_method("supervised"), setting, TrainerSettings(shorten=0.5), validate=lambda _: 0.5)


class _Drift(Supervised):
    """Takes every weight one step of the optimiser further each time, whatever the batch."""

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        return {"drift": torch.stack([parameter.sum() for parameter in student.parameters()]).sum()}


class _Still(Supervised):
    """Learns nothing, whatever the batch."""

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        return {"nothing": sum((parameter.sum() for parameter in student.parameters()), torch.zeros(())) * 0}


@pytest.mark.parametrize("decay", ["decoupled", "l2"])
def test_decay_shortens_weights_alike_or_joins_the_gradient(decay: Literal["decoupled", "l2"]) -> None:
    # One step at learning rate .01. Decoupled, weights shrink by .01 · .5; as a gradient, Adam makes a step of .01 of
    # it, however small it is. Vectors, biases among them, are left alone.
    start = build_model("sasrec", 9, {"dim": 8, "max_len": 5, "dropout": 0.3})
    step: dict[str, Any] = {"epochs": 1, "batch_size": 100, "learning_rate": 0.01, "clip_norm": 0}
    kept, _ = _fit(method=_Still(), weight_decay=0.5, decay=decay, **step)
    for parameter, after in zip(start.parameters(), kept.parameters(), strict=True):
        before = expected = parameter.detach()
        if before.dim() > 1:
            expected = before * (1 - 0.01 * 0.5) if decay == "decoupled" else before - 0.01 * before.sign()
        assert after.detach().numpy() == pytest.approx(expected.numpy(), abs=5e-5)


def test_the_running_mean_of_the_weights_is_what_is_kept() -> None:
    # Three steps of AdamW along a constant gradient, at learning rate .1: the weights are w − .1, w − .2, w − .3. Their
    # running mean starts at the first, then takes 1/4 of what is new.
    start = build_model("sasrec", 9, {"dim": 8, "max_len": 5, "dropout": 0.3})
    kept, _ = _fit(method=_Drift(), epochs=1, learning_rate=0.1, clip_norm=0, average=0.75)
    mean = (0.1 * 0.75 + 0.2 * 0.25) * 0.75 + 0.3 * 0.25
    for before, after in zip(start.parameters(), kept.parameters(), strict=True):
        assert (before - after).detach().numpy() == pytest.approx(mean, abs=1e-5)


def test_a_run_that_averages_is_resumed_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed, _ = _fit(epochs=5, values=[0.1, 0.2, 0.3, 0.4, 0.5], average=0.9)
    _stop_after(tmp_path, epochs=2, average=0.9)
    assert _same(_fit(tmp_path, epochs=5, values=[0.3, 0.4, 0.5], average=0.9)[0], undisturbed)


def test_a_run_is_resumed_to_the_same_weights(tmp_path: Path) -> None:
    undisturbed, whole = _fit(epochs=5, values=[0.1, 0.2, 0.3, 0.2, 0.1])
    _stop_after(tmp_path, epochs=2)
    resumed, result = _fit(tmp_path, epochs=5, values=[0.3, 0.2, 0.1])
    assert _same(resumed, undisturbed)
    assert [row.epoch for row in result.rows] == [1, 2, 3, 4, 5]
    assert result.best_epoch == whole.best_epoch == 3
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5]


def test_going_on_with_another_precision_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ``auto`` means bf16 on one machine and fp32 on the next, nothing in the settings says so."""
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: True)
    _stop_after(tmp_path, epochs=2)
    _stop_after(tmp_path, epochs=3, values=[0.3])
    assert caplog.messages == []  # nothing differs
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: False)
    _, result = _fit(tmp_path, epochs=5)
    assert "goes on after epoch 3" in caplog.text
    assert "student_precision bf16 before, fp32 now; method_precision bf16 before, fp32 now" in caplog.text
    first, second = result.computed_with
    assert (first["from_epoch"], second["from_epoch"]) == (1, 4)
    assert (first["method_precision"], second["method_precision"]) == ("bf16", "fp32")
    assert first["torch"] == second["torch"] == torch.__version__
    caplog.clear()
    assert _fit(tmp_path, epochs=5)[1].computed_with == [first, second]  # finished
    assert caplog.messages == []


def test_precision_is_named_where_it_is_set() -> None:
    """A recurrent net has none of its own; the method's says what the products with the item table are made in."""
    student = build_model("gru4rec", 9, {"dim": 8, "max_len": 5})
    setting = Setting(Sequences.from_lists(ROWS), np.arange(len(ROWS)), 9)
    method = build_method("s4rec", {"label_loss": {"precision": "fp32"}})
    settings = TrainerSettings(epochs=1)
    (with_,) = fit(student, method, setting, settings, validate=lambda model: 0.5).computed_with
    assert with_ == {
        "from_epoch": 1,
        "torch": torch.__version__,
        "device": "cpu",
        "processes": 1,
        "method_precision": "fp32",
    }


class _Stop(Exception):
    pass


def _stop_after(
    folder: Path,
    *,
    epochs: int,
    values: Iterable[float] = (0.1, 0.2),
    dropout: float = 0.3,
    on: torch.device | str = "cpu",
    **more: Any,
) -> None:
    """Run a run of five epochs up to one of them, then fall over."""

    class StopProgress:
        def step(self, epoch: int, step: int, n_steps: int, parts: dict[str, float], speed: float) -> None:
            if epoch > epochs:
                raise _Stop

        def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
            pass

    student = build_model("sasrec", 9, {"dim": 8, "max_len": 5, "dropout": dropout}).to(on)
    setting = Setting(Sequences.from_lists(ROWS), np.arange(len(ROWS)), 9)
    settings = TrainerSettings(**{"epochs": 5, "batch_size": 16, "learning_rate": 0.01, **more})
    script = iter(values)
    with pytest.raises(_Stop):
        fit(
            student,
            Supervised(),
            setting,
            settings,
            validate=lambda model: next(script),
            folder=folder,
            progress=StopProgress(),
        )


def test_a_run_goes_on_on_another_device_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a checkpoint goes to where it is needed: weights, their mean, the best, the optimiser's moments."""
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: False)
    undisturbed, _ = _fit(epochs=5, values=[0.1, 0.5, 0.3, 0.2, 0.4], dropout=0.0, average=0.5)
    _stop_after(tmp_path, epochs=1, dropout=0.0, average=0.5)
    with far_device(monkeypatch) as far:
        _stop_after(tmp_path, epochs=3, values=[0.5, 0.3], dropout=0.0, average=0.5, on=far, device="cuda")
    resumed, result = _fit(tmp_path, epochs=5, values=[0.2, 0.4], dropout=0.0, average=0.5)
    assert (result.best_epoch, result.epochs) == (2, 5)
    for after, expected in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_a_gpu_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, _ = _fit(epochs=5, values=[0.1, 0.2, 0.3, 0.4, 0.5])
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        _stop_after(tmp_path, epochs=2, device="cuda")
    with pytest.raises(RuntimeError, match="CUDA"):  # as it would be, had nobody cared
        torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert _same(_fit(tmp_path, epochs=5, values=[0.3, 0.4, 0.5])[0], undisturbed)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, result = _fit(tmp_path, epochs=2)
    again, same = _fit(tmp_path, epochs=2, values=[-1.0])
    assert _same(first, again)
    assert [row.seconds for row in same.rows] == [row.seconds for row in result.rows]


def test_a_checkpoint_from_before_a_setting_was_added_is_resumed(tmp_path: Path) -> None:
    undisturbed, _ = _fit(epochs=5, values=[0.1, 0.2, 0.3, 0.4, 0.5])
    _stop_after(tmp_path, epochs=2)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    del state["settings"]["average"], state["average"]
    torch.save(state, tmp_path / CHECKPOINT)
    assert _same(_fit(tmp_path, epochs=5, values=[0.3, 0.4, 0.5])[0], undisturbed)


def test_other_settings_do_not_overwrite_a_run(tmp_path: Path) -> None:
    _fit(tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="choose another folder"):
        _fit(tmp_path, epochs=2)


def test_a_broken_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(TrainingError, match="delete it"):
        _fit(tmp_path)


class _Spoilt(Supervised):
    """Turns bad in the second epoch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.epoch = value, 0

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        self.epoch = epoch

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        bad = student.item_embeddings()[1].sum() * (self.value if self.epoch == 1 else 0.0)
        return {**super().loss(student, batch), "extra": bad}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_and_the_last_good_state_kept(tmp_path: Path, value: float) -> None:
    with pytest.raises(TrainingError, match=r"'extra' is .* in epoch 2, step 1; the state after epoch 1 is kept"):
        _fit(tmp_path, method=_Spoilt(value))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert len(state["rows"]) == 1
    assert all(value.isfinite().all() for value in state["student"].values())


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot write .*choose another folder") as caught:
        _fit(tmp_path / "file" / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / f".{CHECKPOINT}.partial").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot write .*Free the disk") as caught:
        _fit(tmp_path, epochs=1)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


def test_nobody_to_learn_from_is_refused() -> None:
    setting = Setting(Sequences.from_lists([[1], [2]]), np.arange(2), 9)
    student = build_model("sasrec", 9, {"dim": 8})
    with pytest.raises(TrainingError, match="nothing to learn"):
        fit(student, build_method("supervised"), setting, TrainerSettings(), validate=lambda model: 0.0)


SCRIPT = """
import sys, numpy as np, torch
from pathlib import Path
from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting, build_method
from recdistill.models.base import build_model
from recdistill.training.settings import TrainerSettings
from recdistill.training.loop import fit
torch.set_num_threads(1)
rows = [[(user * 7 + step) % 50 + 1 for step in range(2 + user % 9)] for user in range(600)]
student = build_model("sasrec", 50, {"dim": 16, "max_len": 10, "dropout": 0.3})
setting = Setting(Sequences.from_lists(rows), np.arange(len(rows)), 50)
print("ready", flush=True)
fit(student, build_method("supervised"), setting, TrainerSettings(epochs=12, batch_size=32, seed=1),
    validate=lambda model: float(model.item_embeddings().sum()), folder=Path(sys.argv[1]) / "run")
torch.save(student.state_dict(), Path(sys.argv[1]) / "weights.pt")
"""


def test_a_killed_process_ends_with_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL at several instants, the same command each time: bit for bit the weights of an undisturbed run."""
    (tmp_path / "script.py").write_text(SCRIPT)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / name)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    with start("undisturbed") as process:
        assert process.wait() == 0
    kills = 0
    for delay in (0.02, 0.3, 0.6):
        with start("killed") as process:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
    with start("killed") as process:
        assert process.wait() == 0
    assert kills >= 1
    first, second = (
        torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("undisturbed", "killed")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def _share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    student, result = _fit(epochs=2, seed=5)
    torch.save({"student": student.state_dict(), "best": result.best_value}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_keep_the_same_weights(tmp_path: Path) -> None:
    spawn(_share, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["best"] == second["best"] == 0.5
    assert all(torch.equal(first["student"][key], second["student"][key]) for key in first["student"])
