from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from recdistill.augmentations import two_views
from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.cl4srec import CL4SRec, CL4SRecConfig
from recdistill.methods.contrast import nt_xent
from recdistill.methods.supervised import Supervised
from recdistill.models.base import Model, build_model
from recdistill.training.batches import Batches

N = 9
TRAIN = Sequences.from_lists([(start + step) % N + 1 for step in range(4 + start % 5)] for start in range(N))
ROWS = np.arange(6)
M = TypeVar("M", bound=Method)


def ready(**settings: Any) -> CL4SRec:
    return prepared(CL4SRec(**settings))


def prepared(method: M) -> M:
    method.prepare(Setting(TRAIN, np.arange(len(TRAIN)), N))
    return method


def student(name: str = "sasrec") -> Model:
    return build_model(name, N, {"dim": 8, "max_len": 6, "dropout": 0.0, "init_std": 0.3})


def batch(model: Model, seed: int = 0) -> TrainingBatch:
    batches = Batches(TRAIN, batch_size=len(ROWS), max_len=model.max_len, reads_last=not model.causal)
    return TrainingBatch(*batches.of(ROWS), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "hstu"])
def test_the_contrast_is_that_of_two_views_after_the_last_item(name: str) -> None:
    model = student(name)
    method = ready(contrast_weight=0.3, temperature=0.5, similarity="cosine", label_loss={"loss": "softmax"})
    found = method.loss(model, batch(model, seed=4))["contrast"]
    same = batch(model, seed=4)
    method.label_loss(model, same)  # its draws, such as BERT4Rec's masks, come first
    views = two_views(same.batch, method.config.augmentation, same.generator, max_len=6)
    first, second = model.encode(views).tensor_split(2)
    expected = 0.3 * nt_xent(first, second, temperature=0.5, similarity="cosine")
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_without_contrast_it_is_supervised_learning(loss: str) -> None:
    """The ablation ends at the baseline, draw for draw."""
    model = student()
    parts = ready(contrast_weight=0, label_loss={"loss": loss}).loss(model, batch(model))
    expected = prepared(Supervised(loss=loss)).loss(model, batch(model))
    assert parts.keys() == {"label"}
    assert parts["label"].item() == expected["label"].item()


def test_contrast_leaves_the_labels_loss_alone() -> None:
    model = student()
    parts = ready(label_loss={"loss": "bce"}).loss(model, batch(model))
    assert parts["label"].item() == prepared(Supervised(loss="bce")).loss(model, batch(model))["label"].item()


def test_it_pulls_views_of_a_history_together_and_histories_apart() -> None:
    model, method = student(), ready(contrast_weight=1.0, similarity="cosine", temperature=0.5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)

    def contrast() -> float:
        with torch.no_grad():
            return sum(method.loss(model, batch(model, seed))["contrast"].item() for seed in range(100, 105)) / 5

    before = contrast()
    for seed in range(40):
        loss = method.loss(model, batch(model, seed))["contrast"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert contrast() < 0.8 * before


def test_the_operators_are_the_papers_and_one_setting_changes_no_other() -> None:
    config = CL4SRecConfig.parse({"augmentation": {"mask_share": 0.5}}).augmentation
    assert config.kinds == ("crop", "mask", "reorder")
    assert (config.crop_share, config.mask_share, config.reorder_share) == (0.6, 0.5, 0.6)


@pytest.mark.parametrize("wrong", [{"contrast_weight": -0.1}, {"temperature": 0}, {"augmentation": {"kinds": []}}])
def test_settings_without_a_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        CL4SRecConfig.parse(wrong)
