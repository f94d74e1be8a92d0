"""BAHSD: trust each of a black box's answers as far as probing says, and teach what survives the probing elsewhere.

Source: Zhou et al., "BAHSD: Bridging the Long-tail Gap via Adaptive Distillation in Black-box Sequential
Recommendation", arXiv 2606.03091. Only its outline is public: probing at several scales, a KL divergence with a dynamic
temperature for reliable answers, ranking consistency and InfoNCE for the others. Every formula here is this library's
own. The largest difference from the outline: no answer, however unreliable, loses its soft target over the whole
catalogue. With lists alone and without that, a student collapses; and uniform distillation helps at every reliability.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from torch import Tensor

from recdistill.arrays import Floats, Ints
from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.losses.ranking import ranking_consistency
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.contrast import info_nce
from recdistill.methods.kd import KDConfig, check_values, list_loss
from recdistill.methods.labels import LabelLoss
from recdistill.methods.lists import draw_unlisted, list_logits
from recdistill.methods.opinion import Share
from recdistill.methods.parts import ShownPrefixes, cut
from recdistill.methods.probing import (
    Unmeasured,
    check_told,
    consensus,
    consistency,
    fill_unmeasured,
    look_back,
    peakedness,
    probe,
    shown_at,
    stack,
)
from recdistill.methods.soft_lists import Answers, label_and_queries, soft_targets
from recdistill.methods.with_intents import WithIntents
from recdistill.models.base import Batch, Model
from recdistill.teachers.base import Teacher

_TRUTH = TypeAdapter(bool)


def _scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    if any(not 0 < scale <= 1 for scale in scales) or 1.0 not in scales or len(set(scales)) < len(scales):
        raise ValueError("must be different shares above 0 and up to 1, with 1 among them, for example [0.5, 1.0]")
    return tuple(sorted(scales))


class BAHSDConfig(KDConfig):
    """Distillation by reliability. ``temperature`` is that of an answer that is not to be relied on at all."""

    second_opinion: Share = "auto"
    """How much what followed what in the training histories counts in every answer, against 1 minus that for the
    teacher: see `SecondOpinionConfig`. A budget that ends leaves the other histories to them alone. 0, which is the
    default without ``labels``, leaves the teacher alone: rules are made of the histories, which students of answers
    alone may have no right to learn from.
    """
    scales: Annotated[tuple[float, ...], AfterValidator(_scales)] = (0.5, 1.0)
    """Shares of each history that the teacher is shown, newest part; one query each. ``[1.0]`` does no probing."""
    depth: PositiveInt = 20
    """Ranks compared between the answers at two scales."""
    target: Literal["consensus", "answer"] = "consensus"
    """What a reliable user is taught: what all the answers say together, or the answer to the whole history alone.

    On short histories the consensus is right more often than any of the answers; on long ones it is about as good as
    that to the whole (``benchmarks/bahsd.md``, the premise).
    """
    reliability: Literal["consistency", "peakedness"] = "consistency"
    """What the gate reads: agreement between scales, or how peaked one answer is, which needs the teacher's scores."""
    unmeasured: Unmeasured = "typical"
    """What a user counts as whose history is too short to be cut, or for whom the budget bought one answer only."""
    gate: Literal["soft", "hard", "none"] = "soft"
    """How reliability becomes a weight: smoothly, 0 or 1 at the median, or 1/2 for everyone whose it is measured."""
    gate_width: PositiveFloat = 0.5
    """Softness of the soft gate, in standard deviations of the reliability."""
    reliable_temperature: PositiveFloat = 1.0
    """Temperature of a wholly consistent and wholly peaked answer; equal to ``temperature`` it is not dynamic.

    The paper's outline is to soften reliable answers, which a value above ``temperature`` does.
    """
    ranking: Literal["listwise", "smooth", "margin"] = "listwise"
    """How the consensus is taught: as a soft target over the catalogue, or by pairs, with a smooth loss or that of a
    ``margin``."""
    quorum: float = Field(default=0.0, ge=0, lt=1)
    """The consensus holds what more than this share of the answers list; 0 is all that any of them lists. Where they
    share nothing, it is the answer to the whole history."""
    ranking_weight: NonNegativeFloat = 1.0
    """Of the consensus, against 1 for the answer; below 1, unreliable users are distilled less than reliable ones."""
    prefixes: NonNegativeInt = 0
    """How many earlier states of each history the teacher is asked about as well, one query each: its oldest part, cut
    at random. The student is then taught more states than the one that each user is in now."""
    view_weight: NonNegativeFloat = 1.0
    """Of what is taught to the student's state after another view of the history; 1 is as much as after the whole.
    Views are the ``prefixes``, each of which is taught the answer to itself; where there are none, the history
    shortened to one of the ``scales``, which is taught the consensus, or the answer to itself where
    ``target = "answer"``.
    """
    contrast_weight: NonNegativeFloat = 0.0
    """Of InfoNCE between a whole and a shortened history, for unreliable users; part of the paper's outline. It needs
    two ``scales`` or more."""
    contrast_temperature: PositiveFloat = 0.2
    """At which cosines are compared."""

    def unread(self) -> dict[str, str]:
        """Pairs of a ranking read the margin as well; the contrast and the soft gate have settings of their own."""
        unread = super().unread()
        if self.ranking == "margin":
            unread.pop("margin", None)
        if not self.contrast_weight:
            unread["contrast_temperature"] = "contrast_weight above 0"
        if self.gate != "soft":
            unread["gate_width"] = "gate = 'soft'"
        return unread

    @model_validator(mode="before")
    @classmethod
    def _no_opinion_without_labels(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            labels = _TRUTH.validate_python(settings.get("labels", True))
        except ValidationError:  # refused with the other settings
            return settings
        return settings if labels else {"second_opinion": 0.0, **settings}

    @model_validator(mode="after")
    def _prefixes_are_views(self) -> Self:
        if self.prefixes and not self.view_weight:
            raise ValueError(
                "prefixes are asked about to be learned as views: set view_weight above 0, or prefixes to 0"
            )
        if self.prefixes and self.contrast_weight:
            raise ValueError("the contrast needs shortened histories as views: set prefixes or contrast_weight to 0")
        if self.contrast_weight and len(self.scales) == 1:
            raise ValueError(
                "the contrast needs shortened histories as views, and scales = [1.0] has none: give another scale, for "
                "example [0.5, 1.0], or set contrast_weight to 0"
            )
        return self

    @model_validator(mode="after")
    def _one_contrast(self) -> Self:
        if self.contrast_weight and self.intents is not None and self.intents.contrast_weight:
            raise ValueError("contrast_weight and intents.contrast_weight make two contrasts; set one of them to 0")
        return self


class BAHSD(WithIntents, name="bahsd"):
    r"""Teach what the answers to several parts of a history say together, after the whole of it and after parts.

    .. math:: L = L_{label} + \frac{\lambda}{T} \sum_u w_u L_{KL}(u)
              + (1 - w_u) \bigl(\lambda_2 L_R(u) + \lambda_3 L_{NCE}(u)\bigr) + \lambda_4 L_{view}(u)

    w is the gate, by reliability. The consensus is the mixture of the answers at all scales. L_R teaches it; L_KL
    teaches it as well, at a temperature that may follow reliability, or the answer to the whole history alone
    (``target``). Views are earlier histories, or one shortened one a step. Users without an answer learn from labels
    alone. λ and T are those of `KD`: an answer counts as much as λ labels.

    The defaults are what validation data favoured: probing, consensus and views. There, reliability speaks through the
    consensus, which is as flat as the answers disagree; w has no effect until something that it chooses between is
    switched on, as the outline has it: ``reliable_temperature`` for the dynamic temperature, ``contrast_weight`` for
    InfoNCE, ``ranking = "margin"`` with ``quorum = 0.5`` for the ranking consistency, ``target = "answer"``.
    ``scales = [1.0]`` leaves out the probing. Where answers alone are learned, ``prefixes = 4`` and ``view_weight = 4``
    add most of all. Beside labels they add nothing for models that read one way, whose labels cover those states
    already; one that reads both ways learns labels at masked places only. Beside labels
    ``second_opinion`` adds most of all: a share of each answer is what rules counted in the training histories say,
    which is no part of the paper either. It helps where what is near in a history goes together, and not across visits
    of a shop; validation data say how much.
    """

    Config = BAHSDConfig
    config: BAHSDConfig
    needs = frozenset({"rankings"})
    parts_of_histories = True

    def check_teacher(self, teacher: Teacher | None) -> Teacher:
        """Refuse one that cannot be asked about parts of a history, too, or lacks the scores that the gate reads."""
        config = self.config
        teacher = check_values(config, super().check_teacher(teacher))
        check_told(teacher, config.scales)
        if config.prefixes and teacher.by_user:
            raise SettingsError(
                f"method {self.name!r} asks about earlier histories, and teacher {teacher.identity!r} is told the user "
                "alone: set prefixes to 0"
            )
        if config.reliability == "peakedness" and (config.values == "ranks" or not teacher.gives_scores):
            raise SettingsError(
                "reliability = 'peakedness' is read from scores, and there are none: set it to 'consistency'"
            )
        return teacher

    def prepare(self, setting: Setting) -> None:
        """Probe the teacher; work out the reliability, gate, temperature and consensus of every user.

        Raises:
            SettingsError: when the teacher does not give what is needed.
        """
        self.check_teacher(setting.teacher)
        config = self.config
        setting = config.advised(setting)
        super().prepare(setting)
        asked = probe(setting, scales=config.scales, k=config.top_k)
        self.n_scales, self.n_rows, _ = asked.items.shape
        self.shown = torch.from_numpy(shown_at(setting, config.scales))
        self.taught = None if config.labels or config.intents is not None else asked.full.rows_answered
        earlier = look_back(setting, config.prefixes, rows=asked.full.rows_answered, k=config.top_k)
        self.dropped = torch.from_numpy(earlier.dropped)
        self.told = Answers.read(stack(asked, earlier), config.values, config.rank_decay)
        shares = soft_targets(self.told.logits[: self.n_scales * self.n_rows], 1.0).view(asked.items.shape)
        agreed, mixed = consensus(asked.items, shares.numpy(), setting.n_items, quorum=config.quorum)
        self.agreed = Answers(torch.from_numpy(agreed), torch.from_numpy(mixed).float().log())
        self.same = torch.from_numpy(same_histories(setting.train))
        self.label_loss = LabelLoss(config.label_loss, setting) if config.labels else None

        agreement = consistency(asked.items, depth=config.depth)
        peaks = np.where(np.isnan(agreement), np.nan, 1.0)
        if config.values != "ranks" and asked.scores is not None:
            peaks = peakedness(asked.scores[-1])
        self.reliability = agreement if config.reliability == "consistency" else peaks
        weight = gate_weights(self.reliability, kind=config.gate, width=config.gate_width)
        self.gate = torch.from_numpy(fill_unmeasured(weight, config.unmeasured)).float()
        sharpness = torch.from_numpy(fill_unmeasured(agreement * peaks, config.unmeasured)).float()
        self.temperature = config.temperature + (config.reliable_temperature - config.temperature) * sharpness

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return those parts that are on: ``label``, ``answer``, ``consensus``, ``view``, ``contrast``, and intents."""
        config, n_rows = self.config, len(batch.rows)
        prefixes = self._prefixes(student, batch)
        earlier = prefixes.places if prefixes is not None and student.causal else None
        parts, states, worth = label_and_queries(student, batch, self.label_loss, config.weight, self.intents, earlier)
        queries = states[:n_rows]
        target = self._target(batch.rows, self.n_scales - 1)
        gate, answered = self._of(batch.rows, self.gate), target[0][:, 0] > 0
        sure, unsure = worth * answered * gate, worth * answered * (1 - gate)
        parts |= self._whole(student, queries, target, batch, sure, unsure)
        if prefixes is not None:
            alone = not student.causal and len(prefixes.places)
            views = student.encode(prefixes.alone(batch.batch)) if alone else states[n_rows:]
            parts["view"] = self._earlier(student, views, prefixes, batch, config.view_weight * worth)
        elif config.contrast_weight or (config.view_weight and self.n_scales > 1):
            parts |= self._shorter(student, queries, batch, worth, unsure)
        return parts

    def _whole(
        self,
        student: Model,
        queries: Tensor,
        target: tuple[Tensor, Tensor],
        batch: TrainingBatch,
        sure: Tensor,
        unsure: Tensor,
    ) -> dict[str, Tensor]:
        """Teach the states after whole histories."""
        config, parts = self.config, {}
        learn = partial(list_loss, student, config, queries)
        if self._one_target:
            return {"consensus": learn(*target, weights=sure + config.ranking_weight * unsure)}
        parts["answer"] = learn(*target, weights=sure, temperature=self._of(batch.rows, self.temperature))
        if config.ranking_weight:
            weights = config.ranking_weight * unsure
            parts["consensus"] = (
                learn(*self.agreed.of(batch.rows), weights=weights)
                if config.ranking == "listwise"
                else self._pairwise(student, queries, batch, weights)
            )
        return parts

    def _earlier(
        self, student: Model, views: Tensor, prefixes: ShownPrefixes, batch: TrainingBatch, worth: float
    ) -> Tensor:
        """Teach the states at earlier items the answers to these prefixes."""
        lessons = (self.n_scales + prefixes.turns) * self.n_rows + batch.rows[prefixes.histories]
        items, logits = self.told.of(lessons)
        weights = (items[:, 0] > 0) * prefixes.counts * worth
        return list_loss(student, self.config, views, items, logits, weights=weights)

    def _shorter(
        self, student: Model, queries: Tensor, batch: TrainingBatch, worth: float, unsure: Tensor
    ) -> dict[str, Tensor]:
        """Teach the states after shortened histories, and which of them belongs to which whole one."""
        config, parts = self.config, {}
        shown, scale = self._shortened(batch)
        views = student.encode(shown)
        if config.view_weight and self.n_scales > 1:
            items, logits = self._target(batch.rows, scale)
            weights = (items[:, 0] > 0) * (config.view_weight * worth)
            parts["view"] = list_loss(student, config, views, items, logits, weights=weights)
        if config.contrast_weight:
            parts["contrast"] = info_nce(
                queries,
                views,
                self._of(batch.rows, self.same),
                weights=config.contrast_weight * unsure,
                temperature=config.contrast_temperature,
            )
        return parts

    @property
    def _one_target(self) -> bool:
        """Whether reliable and unreliable users are taught the same in the same way, so that once is enough."""
        config = self.config
        static = config.reliable_temperature == config.temperature
        return config.target == "consensus" and config.ranking == "listwise" and static

    def _of(self, rows: Tensor, values: Tensor) -> Tensor:
        return values[rows.to(values.device)].to(rows.device)

    def _target(self, rows: Tensor, scale: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return what is taught of each row after a scale, by its number."""
        return self.agreed.of(rows) if self.config.target == "consensus" else self.told.of(scale * self.n_rows + rows)

    def _prefixes(self, student: Model, batch: TrainingBatch) -> ShownPrefixes | None:
        """Return the prefixes that are learned in this step; ``None`` where none were asked about.

        They are all that there are where the pass over whole histories has their states, or else one of each history.
        """
        if not len(self.dropped):
            return None
        device = batch.rows.device
        prefixes = ShownPrefixes.of(batch.batch, self.dropped[:, batch.rows.to("cpu")].to(device))
        if student.causal:
            return prefixes
        draws = torch.rand(len(batch.rows), generator=batch.generator, dtype=torch.float64)
        return prefixes.one_each(draws.to(device))

    def _shortened(self, batch: TrainingBatch) -> tuple[Batch, Tensor]:
        """Return each history shortened to a scale that is drawn, and the number of that scale.

        What is taught the answer to a part is that very part, or as much of it as the batch shows. The consensus is
        taught to any part, which is then a share of what the batch shows.
        """
        draws = torch.rand(len(batch.rows), generator=batch.generator, dtype=torch.float64)
        scales = (draws * max(self.n_scales - 1, 1)).long()
        ends, lengths = batch.batch.offsets[1:], batch.batch.lengths
        if self.config.target == "answer":
            kept = self.shown[scales, batch.rows.to("cpu")].to(ends.device).minimum(lengths)
        else:
            shares = torch.tensor(self.config.scales, dtype=torch.float64)[scales].to(ends.device)
            kept = (shares * lengths - 1e-9).ceil().long()
        return cut(batch.batch, ends - kept, ends), scales.to(ends.device)

    def _pairwise(self, student: Model, queries: Tensor, batch: TrainingBatch, weights: Tensor) -> Tensor:
        """Each agreed item above the next one, and above a random item that no answer lists."""
        (agreed, mixed), embeddings = self.agreed.of(batch.rows), student.item_embeddings()
        scales = torch.arange(self.n_scales, device=agreed.device)[:, None] * self.n_rows
        listed = self._of(scales + batch.rows, self.told.items).transpose(0, 1).flatten(1).long()
        others, unlisted = draw_unlisted(listed, agreed.shape[1], student.n_items, batch.generator)
        loss = ranking_consistency(
            list_logits(queries, embeddings, agreed),
            mixed.exp(),
            list_logits(queries, embeddings, others),
            unlisted,
            margin=self.config.margin if self.config.ranking == "margin" else None,
        )
        return weights @ loss


def gate_weights(reliability: Floats, *, kind: Literal["soft", "hard", "none"], width: float) -> Floats:
    r"""Turn reliability into the weight of the single answer.

    .. math:: w = \sigma\bigl((c - \mathrm{mean}(c)) / (\kappa \, \mathrm{std}(c))\bigr) \quad \text{(soft)}, \qquad
              w = 1[c \ge \mathrm{median}(c)] \quad \text{(hard)}

    Args:
        reliability: ``(R,)`` c, NaN where it is not measured; mean, deviation and median run over the measured.
        kind: the form; ``none`` is 1/2 for all the measured.
        width: kappa of the soft form.

    Returns:
        ``(R,)`` in [0, 1], NaN where it is not measured; 1/2 for everyone where all are equally reliable (soft).
    """
    measured = reliability[~np.isnan(reliability)]
    if kind == "none" or not len(measured):
        return np.where(np.isnan(reliability), np.nan, 0.5)
    if kind == "hard":
        return np.where(np.isnan(reliability), np.nan, reliability >= np.median(measured))
    distance = (reliability - measured.mean()) / (width * max(measured.std(), 1e-9))
    weights: Floats = 0.5 * (1 + np.tanh(distance / 2))
    return weights


def same_histories(sequences: Sequences) -> Ints:
    """Return ``(R,)`` for each row the first row that holds the same items in the same order."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), n) for n, row in enumerate(sequences)], np.int64)
