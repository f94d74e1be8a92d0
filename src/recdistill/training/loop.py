"""One plain loop that trains any student by any method, and survives being killed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recdistill.errors import SettingsError, TrainingError
from recdistill.losses.precision import resolved
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.models.base import Model
from recdistill.models.layers import seed_dropout
from recdistill.teachers.base import Teacher
from recdistill.training import processes
from recdistill.training.batches import Batches
from recdistill.training.checkpoints import Store
from recdistill.training.progress import EpochRow, Fit, Progress, Silent
from recdistill.training.settings import TrainerSettings

_log = logging.getLogger("recdistill.training")


def fit(
    student: Model,
    method: Method,
    setting: Setting,
    settings: TrainerSettings,
    *,
    validate: Callable[[Model], float],
    started: bool = False,
    keep: Callable[[int, Model], None] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Train ``student`` by ``method`` until validation no longer improves, and leave the best weights in it.

    Every random draw follows from the seed and the number of the epoch. So a run that is killed and started again in
    the same ``folder`` goes on after its last whole epoch and, on the same CPU, ends with the very same weights. Where
    something else computes than before (`Fit.computed_with`), a warning says what differs.

    In several processes (`processes.joined`) each takes its share of every batch and gradients are averaged; process 0
    prepares the method before the others, validates and writes.

    Args:
        student: the model to train, on the device to train it on, whatever the settings say.
        method: what to learn from; it is prepared here.
        setting: training sequences and teacher.
        settings: of the loop.
        validate: gives a student's NDCG@10 on the validation cases; higher is better.
        started: the student begins with trained weights. They are validated first, and stay if no epoch is as good;
            patience counts from the best epoch all the same, as what is new to learn often takes a student down first.
        keep: given each of the ``keep_epochs``, and the student as it is after it, to write it down.
        folder: where checkpoint and metrics go; nothing is written without it.
        progress: who is told how it goes.

    Raises:
        TrainingError: when a loss or gradient is not finite, or the folder cannot be written. The last good state
            stays in the folder.
    """
    tune_allocator()
    progress = progress or Silent()
    with processes.one_after_the_first():  # whose answers are in the ledger then
        method.prepare(setting)
    method.fit_to(student)

    def value_of(model: Model) -> float:
        device = next(model.parameters()).device
        return processes.from_first(validate(model.eval()) if processes.rank() == 0 else 0.0, device)

    begun = (value_of(student), _copy(student)) if started else None
    loop = _Loop(student, method, setting, settings)
    store = Store(folder) if folder is not None and processes.rank() == 0 else None
    if folder is not None and (state := Store(folder).load()) is not None:
        loop.resume(state)
    loop.note_what_computes()
    processes.wait()  # nobody writes a checkpoint, or removes it, that another has not read yet
    if store is not None:
        store.write_metrics(map(asdict, loop.fit.rows))

    while not loop.done:
        row = loop.run_epoch(progress)
        value = None
        if row.epoch % settings.validate_every == 0 or row.epoch == settings.epochs:
            value = value_of(loop.result)
        row = replace(row, validation=value)
        loop.finish_epoch(row)
        if keep is not None and row.epoch in settings.keep_epochs and processes.rank() == 0:
            keep(row.epoch, loop.result.eval())
        if store is not None:
            store.save(loop.state())
            store.write_metrics(map(asdict, loop.fit.rows))
        progress.epoch(row, settings)
    if begun is not None:
        loop.keep_start(*begun)
    student.load_state_dict(loop.best)
    student.eval()
    return loop.fit


class _Loop:
    """The state of training between two epochs."""

    def __init__(self, student: Model, method: Method, setting: Setting, settings: TrainerSettings) -> None:
        self.student, self.method, self.setting, self.settings = student, method, setting, settings
        self.about = _about(student, method, setting)
        self.device = next(student.parameters()).device
        method.to(self.device)
        whole = method.reads_last or not student.causal
        if settings.shorten and student.reads == "user":
            raise SettingsError(f"model {student.name!r} reads the user, not a history to shorten; set shorten to 0")
        self.batches = Batches(
            setting.train,
            batch_size=settings.batch_size,
            max_len=student.max_len,
            reads_last=whole,
            shorten=settings.shorten,
            rows=method.taught,
        )
        if len(self.batches) == 0:
            raise TrainingError("there is nothing to learn: no user has two training interactions")
        self.parameters = [p for p in (*student.parameters(), *method.parameters()) if p.requires_grad]
        self.optimiser = torch.optim.Adam(
            [
                {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in self.parameters if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=(0.9, 0.98),  # as in the code of SASRec's authors (github.com/kang205/SASRec, model.py)
            fused=True,
            decoupled_weight_decay=settings.decay == "decoupled",
        )
        self.average = (
            AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(settings.average)) if settings.average else None
        )
        self.fit = Fit()
        self.best = _copy(student)
        if settings.compile:
            student.compile_body()

    @property
    def result(self) -> Model:
        """What is validated and kept: the student, or the average of what it has been."""
        if self.average is None:
            return self.student
        return cast(Model, self.average.module)

    @property
    def done(self) -> bool:
        return self.fit.stopped_early or self.fit.epochs >= self.settings.epochs

    def run_epoch(self, progress: Progress) -> EpochRow:
        epoch, n_steps = self.fit.epochs, len(self.batches)
        seed = _mix(self.settings.seed, epoch, processes.rank())
        generator = _generator(seed)
        noise = generator if self.device.type == "cpu" else _generator(seed, self.device)
        seed_dropout(self.student, noise)
        seed_dropout(self.method, noise)
        start = time.perf_counter()
        self.method.start_epoch(self.student, epoch, generator)
        self.student.train()
        self.method.train()
        sums: dict[str, float] = {}
        rate = 0.0
        for step, (batch, labels, rows) in enumerate(self.batches.epoch(self.settings.seed, epoch)):
            rate = self._set_learning_rate(epoch * n_steps + step)
            training_batch = TrainingBatch(
                batch.to(self.device), labels.to(self.device), rows.to(self.device), generator
            )
            parts = self._step(training_batch, epoch + 1, step + 1)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
            speed = (step + 1) * self.batches.batch_size / (time.perf_counter() - start)
            progress.step(epoch + 1, step + 1, n_steps, parts, speed)
        seconds = time.perf_counter() - start
        means = {name: value / n_steps for name, value in sums.items()}
        return EpochRow(epoch + 1, means, None, rate, seconds, self.batches.n_users / seconds)

    def _step(self, batch: TrainingBatch, epoch: int, step: int) -> dict[str, float]:
        parts = self.method.loss(self.student, batch)
        values = {name: float(part.detach()) for name, part in parts.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(self._not_finite(f"the loss part {name!r} is {value}", epoch, step))
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(parts.values())).sum().backward()
        processes.average_gradients(self.parameters)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise TrainingError(self._not_finite(f"the gradient's norm is {norm}", epoch, step))
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return values

    def _not_finite(self, what: str, epoch: int, step: int) -> str:
        kept = f"the state after epoch {epoch - 1} is kept" if epoch > 1 else "no epoch was finished"
        return f"{what} in epoch {epoch}, step {step}; {kept}. Try a lower learning_rate or a smaller clip_norm."

    def _set_learning_rate(self, step: int) -> float:
        settings = self.settings
        last = settings.epochs * len(self.batches)
        if step < settings.warmup_steps:
            factor = (step + 1) / settings.warmup_steps
        elif settings.schedule == "constant":
            factor = 1.0
        else:
            way = (step - settings.warmup_steps) / max(1, last - settings.warmup_steps)
            factor = 1 - way if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * way))
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * factor
        return settings.learning_rate * factor

    def finish_epoch(self, row: EpochRow) -> None:
        fit = self.fit
        fit.rows.append(row)
        if row.validation is None:
            return
        if row.validation > fit.best_value:
            fit.best_epoch, fit.best_value, self.best = row.epoch, row.validation, _copy(self.result)
        validated = sum(r.validation is not None for r in fit.rows[fit.best_epoch :])
        fit.stopped_early = validated >= self.settings.patience

    def keep_start(self, value: float, weights: dict[str, Tensor]) -> None:
        """Put back what the student began with, and say so, where no epoch was as good."""
        fit = self.fit
        fit.start_value = value
        if value <= fit.best_value:
            return
        _log.warning(
            "the student stays what it began with, NDCG@10 %.4f on validation cases: the best epoch, %d, had %.4f. Too "
            "high a learning_rate takes from a student, and so does a teacher that is worse than it",
            value,
            fit.best_epoch,
            fit.best_value,
        )
        fit.best_epoch, fit.best_value, self.best = 0, value, weights

    def state(self) -> dict[str, Any]:
        return {
            "settings": self.settings.model_dump(mode="json"),
            "about": self.about,
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
            "best_epoch": self.fit.best_epoch,
            "best_value": self.fit.best_value,
            "stopped_early": self.fit.stopped_early,
            "rows": [asdict(row) for row in self.fit.rows],
            "computed_with": self.fit.computed_with,
        }

    def resume(self, state: dict[str, Any]) -> None:
        before = TrainerSettings.parse(state["settings"], where="checkpoint")
        if before.model_copy(update={"device": self.settings.device}) != self.settings:
            raise TrainingError("the folder holds a checkpoint of other training settings; choose another folder")
        about = state.get("about", {})
        if other := [what for what, digest in self.about.items() if about.get(what) != digest]:
            raise TrainingError(
                f"the folder holds a checkpoint of {other[0]}; choose another folder (answers that are paid for are in "
                "this one's ledger: see LedgerTeacher, or teacher.ledger of a run)"
            )
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best = state["best"]
        self.fit = Fit(
            [EpochRow(**row) for row in state["rows"]],
            state["best_epoch"],
            state["best_value"],
            state["stopped_early"],
            computed_with=state.get("computed_with", []),
        )

    def note_what_computes(self) -> None:
        """Take note of what computes the epochs to come, and warn where it is not what computed the last ones."""
        if self.done:
            return
        fit, now = self.fit, _what_computes(self.student, self.method, self.device)
        before = fit.computed_with[-1] if fit.computed_with else {}
        differing = [name for name in {**before, **now} if name != "from_epoch" and before.get(name) != now.get(name)]
        if not differing:
            return
        if before and processes.rank() == 0:
            _log.warning(
                "training goes on after epoch %d with something else than before, so its student is not quite that of "
                "either alone: %s",
                fit.epochs,
                "; ".join(f"{name} {before.get(name)} before, {now.get(name)} now" for name in differing),
            )
        fit.computed_with = [*fit.computed_with, {"from_epoch": fit.epochs + 1, **now}]


def _about(student: Model, method: Method, setting: Setting) -> dict[str, str]:
    """Return a hash of each thing that a training depends on beside its settings, by the words for another one."""
    valid = setting.valid
    told: dict[str, object] = {
        "another model": [student.name, student.config.model_dump(mode="json")],
        "another method, or other settings of it": [method.name, method.config.model_dump(mode="json")],
        "another teacher": None if setting.teacher is None else _who(setting.teacher),
        "other training histories": setting.train.digest(),
        "other validation cases": None if valid is None else [valid.histories.digest(), valid.targets.digest()],
    }
    hashes = {what: hashlib.sha256(json.dumps(value, sort_keys=True).encode()) for what, value in told.items()}
    weights = hashlib.sha256()
    for weight in student.state_dict().values():
        if isinstance(weight, Tensor):
            weights.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return {what: found.hexdigest() for what, found in {**hashes, "other first weights": weights}.items()}


def _what_computes(student: Model, method: Method, device: torch.device) -> dict[str, str | int]:
    """Name what else decides the numbers that a training ends with: these may differ where a run is taken up again."""
    found: dict[str, str | int] = {
        "torch": str(torch.__version__),
        "device": device.type,
        "processes": processes.world_size(),
    }
    settings = {
        "student_precision": student.config,
        "method_precision": getattr(method.config, "label_loss", method.config),
    }
    for name, config in settings.items():
        if (precision := getattr(config, "precision", None)) is not None:
            found[name] = resolved(precision, device)
    return found


def _who(teacher: Teacher) -> str | list[str]:
    """Name a teacher; one that is known at several stages of its training by all of them, as a method learns these."""
    return [stage.identity for stage in teacher.checkpoints] or teacher.identity


def tune_allocator() -> None:
    """Let glibc keep freed memory, and serve large blocks from it.

    The stock settings return every large temporary to the kernel, which hands it back page by page, zeroed; how much
    that costs depends on the machine. Elsewhere than on Linux with glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)
        mallopt(m_top_pad, 1 << 26)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
