"""A recommender behind an API as a teacher.

What it is asked and how it answers is declared (`recdistill.teachers.shape_settings`), or known by name
(`recdistill.teachers.presets`). By default ``POST {"history": [ids], "k": 10}`` is answered by ``{"items": [ids]}``,
with ``"scores": [numbers]`` where the API gives them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from recdistill.data.dataset import IdMap
from recdistill.errors import SettingsError
from recdistill.teachers.answers import Answer, Failure, Outcome, Take
from recdistill.teachers.client import Client
from recdistill.teachers.meter import Meter, MeteredTeacher
from recdistill.teachers.secrets import hide
from recdistill.teachers.shape_settings import ShapeSettings
from recdistill.teachers.shapes import DeclaredShape
from recdistill.teachers.transport_settings import TransportSettings

_log = logging.getLogger("recdistill.teachers")


class HttpConfig(ShapeSettings, TransportSettings):
    """Where the API is, what it is asked, and how hard."""

    identity: str | None = None
    """Name under which answers are kept, and what its budget belongs to; change it when the model behind the API
    changes. By default the url, and where more than that has been set, a hash of what decides the answers; headers
    without variables are taken to do so."""
    exclude_history: bool = True
    """Whether items of the history are dropped from the lists."""

    @property
    def known_as(self) -> str:
        """The identity that was given, or one made of the url and what is asked there."""
        return self.identity or (f"{self.address}#{self.fingerprint}" if self.fingerprint else self.address)


class HttpTeacher(MeteredTeacher):
    """A recommender API; how calls are made, and what becomes of each fault, stands in `recdistill.teachers.client`.

    An API that is told the user needs ``users``. One that is told nothing else (``reads = "user"``) cannot be asked
    about a part of a history, and neither can one that is told the last item alone: there is nothing to probe, so
    distil from these with method ``kd``. One that is told the user beside the history is asked about parts of it as
    well, under the same user; if it looks the user up it answers from its own store, and consistency means little.

    One that keeps sessions is told each history from its beginning, under a name that it has not heard before: one call
    for each item, and all of them anew under another name when a step may have been lost. Of one whose answers vary the
    first is kept; another round of a ledger asks anew.

    What an API quotes of the secrets in its calls is hidden; an id that does is unknown, and kept without them.

    Args:
        ids: the items, in the ids of the data.
        config: the settings, or give them by name.
        users: the users, in the ids of the data.
    """

    def __init__(
        self, ids: IdMap, config: HttpConfig | None = None, *, users: IdMap | None = None, **settings: Any
    ) -> None:
        self.config = config if config is not None else HttpConfig.parse(settings, where="http teacher")
        self.shape: DeclaredShape = DeclaredShape(self.config)
        self.ids = self.config.item_ids(ids)
        self.takes = "user" if self.config.reads == "user" else "history"
        self.names_user = self.config.names_user
        if self.needs_users:
            self.user_ids = self._known(users)
        self.max_history = self.config.newest
        self.gives_scores = self.config.gives_scores
        self.exclude_history = self.config.exclude_history
        self.charge = self.config.charge
        self.client = Client(self.config)
        self._warn()

    @property
    def identity(self) -> str:
        """The name that was given, or one made of the url and what is asked there."""
        return self.config.known_as

    def answers(self, take: Take, k: int, meter: Meter | None = None) -> Iterator[list[Outcome]]:
        """Ask the API; on Ctrl-C what is in flight is still waited for and yielded; a second one drops it.

        Raises:
            TeacherError: when the API refuses the key, or seems dead.
            SettingsError: when an environment variable that the settings name is not set.
        """
        self.shape.secrets()  # a variable that is not set is missed here, before anything is taken and booked
        blocks = self.client.answers(self.shape, take, k, meter=meter, hide=self.shape.hide)
        return ([(request, self._discreet(outcome)) for request, outcome in block] for block in blocks)

    def _discreet(self, outcome: Answer | Failure) -> Answer | Failure:
        """Take secrets out of a list that names them; an item of the data is none."""
        if isinstance(outcome, Failure):
            return outcome
        told = "\n".join(map(str, outcome.items))
        if self._hide(told) == told:
            return outcome
        known = zip(outcome.items, self._dense(outcome.items) > 0, strict=True)
        return replace(outcome, items=[item if is_known else self._hide(str(item)) for item, is_known in known])

    def _hide(self, text: str) -> str:
        return hide(text, self.shape.secrets())

    def _known(self, users: IdMap | None) -> IdMap:
        if users is None:
            raise SettingsError(
                f"teacher {self.identity!r} is told the user, so it must know whom: pass users, the ids of the "
                "users of the data; or choose a shape that is told the history alone."
            )
        return self.config.user_ids(users)

    def _warn(self) -> None:
        """Say what is costly, or not to be trusted, before it is paid for."""
        if self.config.reads == "session":
            _log.warning(
                "teacher %r keeps sessions: a query takes a call for each item of its history; max_history limits that",
                self.identity,
            )
        if self.names_user and self.max_history != 1:
            _log.warning(
                "teacher %r is told the user beside the history: if it looks the user up, what it says of parts of a "
                "history comes from its own store, and consistency means little",
                self.identity,
            )
        if self.config.varies:
            _log.warning(
                "teacher %r may answer the same question in another way: its first answer is kept, and part of what "
                "looks like inconsistency is chance, so that consistency reads too low",
                self.identity,
            )
