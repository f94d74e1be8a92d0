"""The shape of an API, declared: what it is asked, and where its answer lies.

Everything here is pure: settings and questions in, calls out; replies in, answers out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path as File
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from uuid import uuid4

import polars as pl
from pydantic import AfterValidator, Field, JsonValue, PositiveInt, model_validator

from recdistill.data.dataset import IdMap, RawId
from recdistill.data.files import open_tables
from recdistill.errors import SettingsError, TeacherError
from recdistill.settings import Settings
from recdistill.teachers.base import Answer, Failure, Request, check_items, check_scores
from recdistill.teachers.exchange import Call, Conversation, Reply
from recdistill.teachers.paths import Path
from recdistill.teachers.presets import with_preset
from recdistill.teachers.signing import Signature, fill_in, secret, variables
from recdistill.teachers.templates import fill, names, text, write

_SECRET = re.compile(r"auth|cookie|key|token|secret|passw|signature|credential", re.IGNORECASE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FIRST_TIME = datetime(2020, 1, 1, tzinfo=UTC)

Plain: TypeAlias = str | int | float | bool
Reads: TypeAlias = Literal["history", "session", "last_item", "user"]

_ANSWERS = {"method", "values", "query", "body", "item", "question", "reads", "max_k", "answers", "items", "id"}
"""The settings that decide what an answer is, next to the url."""
_SHOWS: dict[Reads, set[str]] = {
    "history": {"history", "length", "last_item"},
    "session": {"item"},
    "last_item": {"last_item"},
    "user": {"user"},
}
"""The placeholders that stand for whom a question is about."""


def _checked_path(path: str) -> str:
    Path.parse(path)
    return path


def _checked_list(path: str) -> str:
    if not Path.parse(path).leads_to_many:
        raise ValueError(f"{path!r} leads to one value; add [*] where the list is, as in items[*]")
    return path


def _checked_format(format: str) -> str:
    if format.count("{id}") != 1:
        raise ValueError(f"{format!r} must name {{id}} once, as in item-{{id}}")
    return format


def _history_and_k() -> JsonValue:
    return {"history": "{history}", "k": "{k}"}


OnePath: TypeAlias = Annotated[str, AfterValidator(_checked_path)]
ListPath: TypeAlias = Annotated[str, AfterValidator(_checked_list)]
IdFormat: TypeAlias = Annotated[str, AfterValidator(_checked_format)]
IdFile: TypeAlias = Annotated[str, AfterValidator(lambda path: str(File(path).absolute()))]


class ShapeSettings(Settings):
    """How an API wants to be asked, and how it answers; by default ``{"history", "k"}`` and ``{"items", "scores"}``.

    Templates hold placeholders. Of whom is asked: ``{history}``, ``{length}``, ``{last_item}``; ``{item}`` in the
    replay of a session; ``{user}``. Of what: ``{k}``, ``{gives_scores}``, ``{session}`` (new for each question),
    ``{offset}`` or ``{page}`` where lists come in pages, ``{questions}`` where one call asks several. And each name in
    ``values``.
    """

    preset: str | None = None
    """A shape that is known by name; what is set here replaces what it sets, and tables are merged. It is read once:
    afterwards its settings stand here, and this is empty."""
    url: str
    """Where calls go to, a template; http or https, without secrets in it."""
    method: Literal["GET", "POST", "PUT"] = "POST"
    """How it is called."""
    values: dict[str, Plain] = Field(default_factory=dict)
    """What further placeholders stand for, such as the name of a campaign; no secrets."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each call; ``${NAME}`` stands for the environment variable NAME, the only place for a secret."""
    query: dict[str, Plain] = Field(default_factory=dict)
    """Parameters of the address, templates; no secrets."""
    body: JsonValue = Field(default_factory=_history_and_k)
    """What is sent, a template; nothing is with ``GET``."""
    item: JsonValue = "{item}"
    """One item in ``{history}``, a template; also with ``{time}``, made up so that items are in order."""
    question: JsonValue = None
    """One question in ``{questions}``, a template, for an API that is asked several things in one call."""
    batch_size: PositiveInt = 1
    """Most questions in one call; more than one needs ``question`` and ``answers``."""
    reads: Reads = "history"
    """What it is told of whom it answers for: the ``history`` in one call; the history item by item, in a ``session``
    that it keeps, one call each; the ``last_item`` alone; or the ``user``, whose history it knows by itself."""
    max_history: PositiveInt | None = None
    """Newest items of a history that are sent; all where not given."""
    max_k: PositiveInt | None = None
    """Items that one call gives at most: ``{k}`` is no more. Where lists do not come in pages, they end there."""
    answers: ListPath | None = None
    """Where the answer to each question lies, if a call asks several; the paths below then start there."""
    items: ListPath = "items[*]"
    """Where the list is, best item first."""
    id: OnePath = "."
    """Where in an entry of the list the item's id is; ``.`` for the entry itself."""
    score: OnePath | None = "scores[*]"
    """Where the score is: in an entry of the list, or, with ``[*]``, in a list of its own; ``None`` for nowhere."""
    next_page: OnePath | None = None
    """Where the reply says what to send as ``{page}`` for more; nothing there, or null, means that there is no more."""
    gives_scores: bool = False
    """Whether to read scores; an answer without them is then a failure."""
    item_format: IdFormat | None = None
    """The API's id of an item, made from that of the data, such as ``item-{id}``; ``{id}`` alone makes it text."""
    item_file: IdFile | None = None
    """File with the API's id of each item: columns ``id``, as in the data, and ``api_id``."""
    user_format: IdFormat | None = None
    """The API's id of a user, made from that of the data."""
    varies: bool = False
    """Whether it may answer the same question in another way the next time."""
    signature: Signature | None = None
    """How calls are signed, where a header does not do."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Put the preset's settings under those given, and send no body with GET."""
        if not isinstance(values, Mapping):
            return values
        filled = with_preset(values)
        return {"body": None, **filled} if filled.get("method") == "GET" else filled

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_secrets()
        self._check_placeholders()
        self._check_calls()
        sample = {name: self.values.get(name, "x") for name in names(self.url)}
        address = urlsplit(write(self.url, sample))
        if address.scheme not in ("http", "https") or not address.hostname:
            raise _refusal(f"url must be a full address like https://shop.example/recommend, but is {self.url!r}")
        if self.gives_scores and self.score is None:
            raise _refusal("gives_scores is set, but this API gives none; leave it out, or say in score where they are")
        if self.item_format is not None and self.item_file is not None:
            raise _refusal("item_format and item_file both say what an item is called; keep one")
        return self

    def _check_secrets(self) -> None:
        """Refuse what looks like a secret, without showing it."""
        where = "must hold no secret, it is written to results; send it in a header from the environment"
        address = urlsplit(self.url)
        if "@" in address.netloc or any(_SECRET.search(name) for name, _ in parse_qsl(address.query)):
            raise _refusal(f"url {where}")
        for table, given in (("query", self.query), ("values", self.values)):
            for name, value in given.items():
                if _SECRET.search(name) and not names(value):
                    raise _refusal(f"{table}.{name} {where}")
        for name, value in self.headers.items():
            if _SECRET.search(name) and not variables(value):
                raise _refusal(
                    f"header {name} carries a secret, which settings must not hold; write ${{NAME}} and put it "
                    "into the environment variable NAME"
                )

    def _check_placeholders(self) -> None:
        """Refuse a placeholder that stands for nothing, and calls that do not say whom they are about."""
        own, shown = set(self.values), _SHOWS[self.reads]
        if wrong := [name for name in own if not _NAME.fullmatch(name)]:
            raise _refusal(f"values.{wrong[0]}: names of placeholders are lower-case letters, digits and _")
        about = own | shown | {"k", "gives_scores", "session"}
        call = about | {"offset"} if self.question is None else own | {"k", "gives_scores"}
        for where, template, known in (
            ("url", self.url, call),
            ("query", dict(self.query), call | {"page"}),
            ("body", self.body, call | {"page"} if self.question is None else call | {"questions"}),
            ("question", self.question, about),
            ("item", self.item, own | {"item", "time"}),
            ("headers", dict(self.headers), own),
        ):
            if unknown := names(template) - known:
                raise _refusal(
                    f"{where}: {{{min(unknown)}}} stands for nothing here; set values.{min(unknown)}, or use one of: "
                    f"{', '.join(sorted(known))}"
                )
        if not self._placeholders & shown:
            raise _refusal(
                f"reads is {self.reads!r}, so url, query, body or question must name one of: {', '.join(sorted(shown))}"
            )

    def _check_calls(self) -> None:
        """Refuse settings that contradict each other about how many calls a question takes."""
        used = self._placeholders
        if self.method == "GET" and self.body is not None:
            raise _refusal("body: GET sends none; use query, or method POST")
        if self.reads == "session" and ("session" not in used or self.in_pages or self.question is not None):
            raise _refusal(
                "the replay of a session must name {session}, and asks one question at a time, without pages"
            )
        if ("page" in used) != (self.next_page is not None):
            raise _refusal("{page} says where a page begins, and next_page where to read that; give both or neither")
        if (self.question is None) != (self.answers is None):
            raise _refusal("question is what one call asks several of, answers where their answers lie; give both")
        if (self.question is None) != ("questions" not in used):
            raise _refusal("question and {questions} in the body belong together; give both or neither")
        if self.question is None and self.batch_size > 1:
            raise _refusal("batch_size: several questions in one call need question and answers")

    @property
    def _placeholders(self) -> set[str]:
        return names([self.url, dict(self.query), self.body, self.question])

    @property
    def in_pages(self) -> bool:
        """Whether a list may take several calls."""
        return bool(self._placeholders & {"page", "offset"})

    @property
    def newest(self) -> int | None:
        """Newest items of a history that can make a difference; ``None`` for all."""
        return 1 if self.reads == "last_item" else self.max_history

    @property
    def fingerprint(self) -> str:
        """What tells this API from others at the same address; empty for the default shape."""
        told = {name: value for name, value in self if name in _ANSWERS and value != _default(name)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12] if told else ""

    def item_ids(self, ids: IdMap) -> IdMap:
        """Return the items in the ids that the API speaks.

        Raises:
            SettingsError: when the file names no id for an item, or one id twice.
            DataError: when it cannot be read.
        """
        if self.item_file is None:
            return _formatted(ids, self.item_format)
        frames = [table.frame for table in open_tables(self.item_file, {"id": "id", "api_id": "api_id"})]
        pairs = pl.concat(frames).cast(pl.String).unique()
        if pairs["id"].n_unique() < len(pairs) or pairs["api_id"].n_unique() < len(pairs):
            raise SettingsError(f"{self.item_file} must name each id and each api_id once, but names one twice.")
        named = ids.raw.cast(pl.String).to_frame("id").join(pairs, on="id", how="left", maintain_order="left")
        if missing := named.filter(pl.col("api_id").is_null())["id"].to_list():
            raise SettingsError(
                f"{self.item_file} gives no api_id for {len(missing):,} of {len(ids):,} items, for example "
                f"{missing[:3]}; add them, or leave the items out of the data."
            )
        return IdMap(named["api_id"], first=ids.first)

    def user_ids(self, ids: IdMap) -> IdMap:
        """Return the users in the ids that the API speaks."""
        return _formatted(ids, self.user_format)


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
        self._answers = None if settings.answers is None else Path.parse(settings.answers)
        self._items = Path.parse(settings.items)
        self._id = Path.parse(settings.id)
        self._score = Path.parse(settings.score) if settings.gives_scores and settings.score is not None else None
        self._in_url = names(settings.url)
        self._next_page = None if settings.next_page is None else Path.parse(settings.next_page)

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        """Ask about some histories at once: one call, several pages, or the replay of a session.

        A list longer than asked for is cut.
        """
        askable = [request for request in requests if self._askable(request)]
        outcomes = iter((yield from self._ask(askable, k)) if askable else [])
        nothing = Failure("the history is empty, so there is no item to ask about", calls=0, paid=False)
        return [next(outcomes) if self._askable(request) else nothing for request in requests]

    def sign(self, call: Call) -> Call:
        """Add the headers that hold secrets, and a signature where there is one.

        Raises:
            SettingsError: when an environment variable that they need is not set.
        """
        headers = {name: fill_in(value) for name, value in self.settings.headers.items() if variables(value)}
        call = replace(call, headers={**call.headers, **headers})
        return call if self.settings.signature is None else self.settings.signature.sign(call)

    def secrets(self) -> list[str]:
        """Return what calls carry that must never be shown.

        Raises:
            SettingsError: when an environment variable is not set.
        """
        named = [name for value in self.settings.headers.values() for name in variables(value)]
        signature = self.settings.signature
        return [secret(name) for name in named] + ([] if signature is None else signature.secrets())

    def _askable(self, request: Request) -> bool:
        return bool(request.history) or self.settings.reads in ("history", "user")

    def _ask(self, requests: Sequence[Request], k: int) -> Conversation:
        if self.settings.reads == "session":
            return [(yield from self._replay(requests[0], k))]
        if self.settings.in_pages:
            return [(yield from self._turn_pages(requests[0], k))]
        reply = _content((yield self._call(self._values(requests, k))))
        if self._answers is None:
            return [self._read(reply, k)]
        answers = self._answers.all(reply)
        if len(answers) != len(requests):
            raise TeacherError(
                f"{len(answers)} answers at {self._answers.text!r} to {len(requests)} questions; there must be one each"
            )
        return [self._try_to_read(answer, k) for answer in answers]

    def _replay(self, request: Request, k: int) -> Generator[Call, Reply, Answer]:
        """Walk through a history as a visitor whom the API has never seen; the last step's answer counts."""
        values = self._values([request], k)
        for item in request.history:
            reply = yield self._call(values | {"item": item})
        return self._read(_content(reply), k)

    def _turn_pages(self, request: Request, k: int) -> Generator[Call, Reply, Answer]:
        """Ask for page after page until there are k items, or no more."""
        values, size = self._values([request], k), min(k, self.settings.max_k or k)
        items: list[RawId] = []
        scores: list[float] = []
        page, last = None, None
        while len(items) < k:
            reply = _content((yield self._call(values | {"page": page, "offset": len(items)})))
            found = self._read(reply, size)
            if found.items and found.items == last:
                raise TeacherError("the page before once more; see how the API wants to be asked for the next")
            last = found.items
            items += found.items
            scores += found.scores or []
            page = self._token(reply)
            more = len(found.items) == size if self._next_page is None else page is not None
            if not found.items or not more:
                break
        return Answer(items[:k], None if self._score is None else check_scores(scores, len(items))[:k])

    def _token(self, reply: Any) -> Any:
        """Return what to send for the next page; ``None`` where there is none."""
        try:
            return None if self._next_page is None else self._next_page.one(reply) or None
        except TeacherError:
            return None

    def _values(self, requests: Sequence[Request], k: int) -> dict[str, Any]:
        """Return what the placeholders of a call stand for."""
        settings = self.settings
        common = {**settings.values, "k": min(k, settings.max_k or k), "gives_scores": settings.gives_scores}
        about = [common | self._about(request) for request in requests]
        if settings.question is None:
            return about[0]
        return common | {"questions": [fill(settings.question, values) for values in about]}

    def _about(self, request: Request) -> dict[str, Any]:
        history = [
            fill(self.settings.item, {**self.settings.values, "item": item, "time": _time(place)})
            for place, item in enumerate(request.history)
        ]
        return {
            "history": history,
            "length": len(history),
            "last_item": request.history[-1] if request.history else None,
            "user": request.user,
            "session": self.new_session(),
        }

    def _call(self, values: Mapping[str, Any]) -> Call:
        settings = self.settings
        own = settings.values
        url = write(
            settings.url, {name: own[name] if name in own else quote(text(values[name]), "") for name in self._in_url}
        )
        if query := {name: text(value) for name, value in fill(dict(settings.query), values).items()}:
            url += ("&" if urlsplit(url).query else "?") + urlencode(query, quote_via=quote)
        headers = {name: write(value, own) for name, value in settings.headers.items() if not variables(value)}
        if settings.body is None:
            return Call(settings.method, url, headers)
        body = json.dumps(fill(settings.body, values), separators=(",", ":"), ensure_ascii=False)
        return Call(settings.method, url, {"Content-Type": "application/json", **headers}, body.encode())

    def _try_to_read(self, answer: Any, k: int) -> Answer | Failure:
        """Read one answer of several: one that makes no sense spoils no other."""
        try:
            return self._read(answer, k)
        except TeacherError as error:
            return Failure(str(error))

    def _read(self, answer: Any, k: int) -> Answer:
        entries = self._items.all(answer)
        items = check_items([self._id.one(entry) for entry in entries])
        if self._score is None:
            return Answer(items[:k])
        apart = self._score.leads_to_many
        scores = self._score.all(answer) if apart else [self._score.one(entry) for entry in entries]
        return Answer(items[:k], check_scores(scores, len(items))[:k])


def _content(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise TeacherError("something that is not JSON") from error


def _formatted(ids: IdMap, format: str | None) -> IdMap:
    if format is None:
        return ids
    before, after = format.split("{id}")
    return IdMap(before + ids.raw.cast(pl.String) + after, first=ids.first)


def _time(place: int) -> str:
    """Return a time for the item at a place in the history, a minute after that of the item before."""
    return f"{_FIRST_TIME + timedelta(minutes=place):%Y-%m-%dT%H:%M:%SZ}"


def _default(name: str) -> Any:
    return ShapeSettings.model_fields[name].get_default(call_default_factory=True, validated_data={})


def _refusal(reason: str) -> SettingsError:
    """Not a ``ValueError``, to which the settings around would be added, with whatever they hold."""
    return SettingsError(f"http teacher: {reason}")
