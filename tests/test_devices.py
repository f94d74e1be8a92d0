"""Which device a setting means, and that training works on another one than the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recdistill as rd
from recdistill.devices import find_device, on_device
from recdistill.errors import SettingsError
from recdistill.losses import precision
from recdistill.models.base import build_model
from recdistill.runs import execute
from recdistill.runs.execute import run_distillation, run_training
from recdistill.runs.file import Run
from recdistill.training.settings import TrainerSettings

from .far import far_device

Sections = dict[str, Any]


def there_are(n: int, monkeypatch: pytest.MonkeyPatch, *, current: int = 0) -> None:
    """Make torch see so many CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)


@pytest.mark.parametrize(
    ("name", "n_there", "found"),
    [
        ("cpu", 2, "cpu"),
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:1"),
        ("cuda", 2, "cuda:1"),
        ("cuda:0", 2, "cuda:0"),
    ],
)
def test_a_name_means_a_device(name: str, n_there: int, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare name is torch's current device, which here is the second."""
    there_are(n_there, monkeypatch, current=1)
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("name", "n_there", "cuda", "said"),
    [
        ("cuda", 0, None, r"'cuda', but PyTorch .* is built without CUDA: set it to 'cpu' or 'auto'"),
        ("cuda:1", 0, "12.8", r"'cuda:1', but PyTorch .* finds no GPU, or no driver for it: set it to 'cpu'"),
        ("cuda:2", 2, "12.8", r"'cuda:2', but the last CUDA device is 'cuda:1': set it to that"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    name: str, n_there: int, cuda: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_are(n_there, monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(SettingsError, match=rf"training\.device is {said}"):
        find_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA"])
def test_what_is_no_name_of_a_device_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"device: String should match pattern '\^\(auto\|cpu\|cuda"):
        TrainerSettings.parse({"device": name})


def test_a_run_on_a_device_that_is_not_there_makes_no_folder(
    little_run: Sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_are(0, monkeypatch)
    training = little_run["training"] | {"device": "cuda"}
    with pytest.raises(SettingsError, match=r"training\.device"):
        run_training(Run.parse(little_run | {"training": training}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_nor_does_a_call_from_python(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there_are(0, monkeypatch)
    data = rd.read_interactions(shop / "clicks.csv").dataset()
    teacher = rd.CallableTeacher(lambda histories, k: [[] for _ in histories], identity="mute", ids=data.items)
    there = rd.TrainerSettings(device="cuda")
    with pytest.raises(SettingsError, match=r"training\.device"):
        rd.distill(teacher, data, training=there, folder=tmp_path / "run")
    with pytest.raises(SettingsError, match=r"training\.device"):
        rd.train(data, training=there, folder=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_tests_device_refuses_tensors_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what runs on it would prove nothing."""
    near = torch.arange(3)
    with far_device(monkeypatch) as far:
        there = near.to(far)
        assert (there + torch.ones(3, device=far) * torch.tensor(2.0)).cpu().tolist() == [2, 3, 4]
        assert there[near].cpu().tolist() == [0, 1, 2]
        with pytest.raises(RuntimeError, match="a tensor of the CPU"):
            there + near
        with pytest.raises(RuntimeError, match="a tensor of the CPU"):
            near[there]


def test_a_model_is_copied_only_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("sasrec", 5, {"dim": 8})
    assert on_device(model, "cpu") is model
    with far_device(monkeypatch) as far:
        moved = on_device(model, far)
    assert {parameter.device for parameter in moved.parameters()} == {far}
    assert {parameter.device for parameter in model.parameters()} == {torch.device("cpu")}


@pytest.mark.parametrize("method", ["kd", "rcekd", "de"])
def test_a_run_on_another_device_ends_with_the_same_student(
    method: str, little_run: Sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher and student work there, by lists, scores or vectors; what is saved is read on the CPU."""
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: False)
    model = little_run["model"] | {"dropout": 0.0}
    teacher = run_training(Run.parse(little_run | {"model": model}), tmp_path / "teacher").folder
    section = {"kind": "run", "folder": str(teacher)}
    settings = Run.parse(little_run | {"model": model, "teacher": section, "method": {"name": method}})
    here = run_distillation(settings, tmp_path / "here")
    with far_device(monkeypatch) as far:
        monkeypatch.setattr(execute, "find_device", lambda name: far)
        there = run_distillation(settings, tmp_path / "there")
    students = [rd.Student.load(result.folder).model for result in (here, there)]
    assert {parameter.device.type for parameter in students[1].parameters()} == {"cpu"}
    weights = [student.item_embeddings().detach() for student in students]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-5)
    assert np.mean(here.evaluation.ranks == there.evaluation.ranks) > 0.95
    assert there.facts["side_by_side"][0]["parameters"] == here.facts["side_by_side"][0]["parameters"]
