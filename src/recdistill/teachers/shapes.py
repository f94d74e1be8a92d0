"""The shape of an API, made of settings: questions in, calls out; replies in, answers out. Nothing here is sent."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

from recdistill.data.dataset import RawId
from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, Failure, Request, check_items, check_scores
from recdistill.teachers.exchange import WHOLE, Call, Conversation, Garbled, PastTheEnd, Reply
from recdistill.teachers.paths import Path
from recdistill.teachers.secrets import credentials, fill_in, hide, secret, variables
from recdistill.teachers.shape_settings import ShapeSettings
from recdistill.teachers.signing import Google, Hmac, OAuth, SigV4
from recdistill.teachers.templates import fill, names, text, write
from recdistill.teachers.tensors import cut, stack
from recdistill.teachers.tokens import Tokens

_log = logging.getLogger("recdistill.teachers")
_EXCERPT = 200
"""Characters of an error that a message quotes."""
_FIRST_TIME = datetime(2020, 1, 1, tzinfo=UTC)


class DeclaredShape:
    """A shape made of settings.

    Args:
        settings: what is asked and where the answer lies.
        new_session: makes the name of a session that the API has never heard of.
    """

    def __init__(self, settings: ShapeSettings, *, new_session: Callable[[], str] = lambda: uuid4().hex) -> None:
        self.settings = settings
        self.batch_size = settings.batch_size
        self.new_session = new_session
        self.tokens = Tokens(settings.signature) if isinstance(settings.signature, OAuth | Google) else None
        self._answers = None if settings.answers is None else Path.parse(settings.answers)
        self._answer_id = None if settings.answer_id is None else Path.parse(settings.answer_id)
        self._items = Path.parse(settings.items)
        self._id = Path.parse(settings.id)
        self._score = Path.parse(settings.score) if settings.gives_scores else None
        self._error = Path.parse(settings.error) if settings.error else None
        self._in_url = names(settings.url)
        self._in_pages = settings.in_pages
        self._names_session = "session" in settings.placeholders
        self._warned = False
        self._next_page = None if settings.next_page is None else Path.parse(settings.next_page)

    def calls(self, request: Request, k: int) -> int:
        """Return how many calls a conversation about a request takes, or most where pages may end early; no retries."""
        if not self._askable(request):
            return 0
        if self.settings.reads == "session":
            return len(request.history)
        return math.ceil(k / self._page_size(k)) if self._in_pages else 1

    def depth(self, k: int) -> int:
        """Return how long a list the calls ask for: no longer than ``max_k``, and `WHOLE` where they do not say."""
        if self._in_pages:
            return k
        return self._page_size(k) if "k" in self.settings.placeholders else WHOLE

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        """Ask about some histories at once: one call, several pages, or the replay of a session.

        A list longer than asked for is cut; of pages all that they list is kept.
        """
        askable = [request for request in requests if self._askable(request)]
        outcomes = iter((yield from self._ask(askable, k)) if askable else [])
        nothing = Failure("the history is empty, so there is no item to ask about", calls=0, paid=False)
        return [next(outcomes) if self._askable(request) else nothing for request in requests]

    def sign(self, call: Call, token: str | None) -> Call:
        """Add the headers that hold secrets, and a token or a signature where there is one.

        Raises:
            SettingsError: when an environment variable that they need is not set.
        """
        own, given = self.settings.values, self.settings.headers
        headers = {name: fill_in(write(value, own)) for name, value in given.items() if variables(value)}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        call = replace(call, headers={**call.headers, **headers})
        signature = self.settings.signature
        return call if signature is None or isinstance(signature, OAuth | Google) else signature.sign(call)

    def secrets(self) -> list[str]:
        """Return what calls carry that must never be shown.

        Raises:
            SettingsError: when an environment variable is not set.
        """
        named = [name for value in self.settings.headers.values() for name in variables(value)]
        signature = self.settings.signature
        return [
            *[part for name in named for part in credentials(secret(name))],
            *([] if signature is None else signature.secrets()),
            *([] if self.tokens is None else self.tokens.issued),
        ]

    def hide(self, text: str) -> str:
        """Take secrets out of what is shown, and signatures, by which somebody else could ask for a while.

        Raises:
            SettingsError: when an environment variable is not set.
        """
        text = hide(text, self.secrets())
        signature = self.settings.signature
        return signature.proof.sub("***", text) if isinstance(signature, SigV4 | Hmac) else text

    def _askable(self, request: Request) -> bool:
        return bool(request.history) or self.settings.reads in ("history", "user")

    def _ask(self, requests: Sequence[Request], k: int) -> Conversation:
        if self.settings.reads == "session":
            return [(yield from self._replay(requests[0], k))]
        if self._in_pages:
            return [(yield from self._turn_pages(requests[0], k))]
        reply = self._content((yield self._call(self._values(requests, k))))
        if self._answers is None:
            return [self._read(reply, k)]
        self._check_error(reply)
        answers = self._answers.all(reply)
        if self.settings.tensors is not None:
            answers = cut(answers, len(requests))
        if len(answers) != len(requests):
            raise TeacherError(
                f"{len(answers)} answers at {self._answers.text!r} to {len(requests)} questions; there must be one each"
            )
        if self._answer_id is not None:
            answers = self._in_order(answers, self._answer_id)
        outcomes = [self._try_to_read(answer, k) for answer in answers]
        if all(isinstance(outcome, Failure) for outcome in outcomes):
            self._read(answers[0], k)  # raises: a reply that holds no answer at all is no reply
        return outcomes

    def _in_order(self, answers: list[Any], answer_id: Path) -> list[Any]:
        """Put answers into the order of their questions, by what they say of that."""
        by_id = {text(answer_id.one(answer)): answer for answer in answers}
        asked = [text(place) for place in range(len(answers))]
        if by_id.keys() != set(asked):
            raise TeacherError(
                f"no answers, or no questions, for {sorted(by_id.keys() ^ set(asked))[:3]} at {answer_id.text!r}; each "
                f"question from 0 to {len(asked) - 1} must be named once"
            )
        return [by_id[place] for place in asked]

    def _replay(self, request: Request, k: int) -> Generator[Call, Reply, Answer]:
        """Walk through a history as a visitor whom the API has never seen; the last step's answer counts.

        A step that was sent twice would put its item into the session twice.
        """
        values = self._values([request], k)
        for item in request.history:
            reply = self._content((yield replace(self._call(values | {"item": item}), repeatable=False)))
            self._check_error(reply)
        return self._read(reply, k)

    def _turn_pages(self, request: Request, k: int) -> Generator[Call, Reply, Answer]:
        """Ask for page after page until there are k items, or no new ones.

        A page that is short is not the last for that: it may be that pages are of another size than is said.
        """
        values, size = self._values([request], k), self._page_size(k)
        items: list[RawId] = []
        scores: list[float] = []
        page, seen = None, set[RawId]()
        for page_number in count(self.settings.first_page):
            place = {"page": page, "page_number": page_number, "offset": len(items)}
            try:
                told = yield self._call(values | place)
            except PastTheEnd:
                if not items:
                    raise
                break
            if items and not told.body.strip():
                break
            reply = self._content(told)
            found, is_second = self._read(reply), page_number == self.settings.first_page + 1
            if seen.issuperset(found.items):
                if is_second and set(found.items) == seen and len(items) >= size:
                    raise TeacherError("the first page once more; see how the API wants to be asked for the next")
                break
            if is_second and self._next_page is None and len(items) != size:
                self._warn_of_size(len(items), size)
            seen.update(found.items)
            items += found.items
            scores += found.scores or []
            page = self._token(reply)
            if len(items) >= k or (self._next_page is not None and page is None):
                break
        return Answer(items, None if self._score is None else check_scores(scores, len(items)))

    def _warn_of_size(self, found: int, size: int) -> None:
        """Say once that pages are of another size than plans and budgets count on."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s gives pages of %d items, not of %d as max_k says, by which plans and budgets count their calls",
                self.settings.address,
                found,
                size,
            )

    def _page_size(self, k: int) -> int:
        return min(k, self.settings.max_k or k)

    def _token(self, reply: Any) -> Any:
        """Return what to send for the next page; ``None`` where there is none."""
        try:
            return None if self._next_page is None else self._next_page.one(reply) or None
        except TeacherError:
            return None

    def _values(self, requests: Sequence[Request], k: int) -> dict[str, Any]:
        """Return what the placeholders of a call stand for."""
        settings = self.settings
        common = {**settings.values, "k": self._page_size(k), "gives_scores": settings.gives_scores}
        about = [common | self._about(request) | {"question_id": n} for n, request in enumerate(requests)]
        if settings.question is None:
            return about[0]
        questions = [fill(settings.question, values) for values in about]
        return common | {"questions": questions if settings.tensors is None else stack(questions, settings.tensors)}

    def _about(self, request: Request) -> dict[str, Any]:
        history = self._history(request)
        return {
            "history": history,
            "length": len(history),
            "last_item": request.history[-1] if request.history else None,
            "user": request.user,
            "session": self.new_session() if self._names_session else None,
        }

    def _history(self, request: Request) -> list[Any]:
        """Return the history as it is told."""
        if self.settings.item == "{item}":  # the usual case, and filling in takes a while where histories are long
            return request.history
        return [
            fill(self.settings.item, {**self.settings.values, "item": item, "time": _time(place)})
            for place, item in enumerate(request.history)
        ]

    def _call(self, values: Mapping[str, Any]) -> Call:
        settings = self.settings
        own = settings.values
        url = write(settings.url, {name: own[name] if name in own else _quoted(values[name]) for name in self._in_url})
        if query := {name: text(value) for name, value in fill(dict(settings.query), values).items()}:
            url += ("&" if "?" in url else "?") + urlencode(query, quote_via=quote)
        headers = {name: write(value, own) for name, value in settings.headers.items() if not variables(value)}
        if settings.body is None:
            return Call(settings.method, url, headers)
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = "application/json"
        body = json.dumps(fill(settings.body, values), separators=(",", ":"), ensure_ascii=False)
        return Call(settings.method, url, headers, body.encode())

    def _try_to_read(self, answer: Any, k: int) -> Answer | Failure:
        """Read one answer of several: one that makes no sense spoils no other."""
        try:
            return self._read(answer, k)
        except TeacherError as error:
            return Failure(f"{self.settings.address} answered one of several with {error}")

    def _read(self, answer: Any, k: int | None = None) -> Answer:
        """Read a list, of which no more than k items are kept."""
        self._check_error(answer)
        or_empty = self.settings.missing_items == "empty"
        if answer is None and or_empty:
            return Answer([], None if self._score is None else [])
        entries = self._items.all(answer, or_empty=or_empty)
        ids = [self._id.one(entry) for entry in entries]
        end = self._end(ids)
        items = check_items(ids[:end])
        if self._score is None:
            return Answer(items[:k])
        apart = self._score.leads_to_many
        scores = self._score.all(answer, or_empty=or_empty) if apart else [self._score.one(entry) for entry in entries]
        told = scores[:end] if len(scores) == len(ids) else scores
        return Answer(items[:k], check_scores(told, len(items))[:k])

    def _content(self, reply: Reply) -> Any:
        """Return what a reply holds; null for an empty body that is an answer."""
        if not reply.body.strip():
            if self.settings.missing_items == "empty":
                return None
            raise TeacherError("an empty body; set missing_items where that is an empty list")
        try:
            return json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise Garbled("something that is not JSON") from error

    def _check_error(self, told: Any) -> None:
        """Refuse what says that it is an error."""
        try:
            found = [] if self._error is None else self._error.all(told)
        except TeacherError:
            return
        if wrong := next(filter(None, found), None):
            said = wrong if isinstance(wrong, str) else json.dumps(wrong, ensure_ascii=False)
            line = " ".join(self.hide(said).split())
            shown = repr(line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}…")
            raise TeacherError(f"an error at {self.settings.error!r}, {shown}")

    def _end(self, ids: list[Any]) -> int:
        """Return where a list ends: in a tensor, where padding begins."""
        tensors = self.settings.tensors
        return len(ids) if tensors is None or tensors.padding not in ids else ids.index(tensors.padding)


def _quoted(value: Any) -> str:
    """Write a value for an address, where ``.`` and ``..`` would lead to another one."""
    quoted = quote(text(value), "")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def _time(place: int) -> str:
    """Return a time for the item at a place in the history, a minute after that of the item before."""
    return f"{_FIRST_TIME + timedelta(minutes=place):%Y-%m-%dT%H:%M:%SZ}"
