"""What an API is asked and where its answer lies, as settings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias
from urllib.parse import parse_qsl

import polars as pl
from pydantic import AfterValidator, Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from recdistill.data.columns import parse_ids
from recdistill.data.dataset import IdMap
from recdistill.data.files import open_tables
from recdistill.errors import SettingsError
from recdistill.settings import Location, Settings
from recdistill.teachers.paths import OnePath, Path
from recdistill.teachers.presets import with_preset
from recdistill.teachers.secrets import address_parts, names_secrets, sounds_secret, variables, without_secrets
from recdistill.teachers.signing import Signature
from recdistill.teachers.templates import names, write
from recdistill.teachers.tensors import Stacking

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_EXAMPLE = "https://shop.example/recommend"
_DOUBLED = re.compile(r"\{\{\s*[A-Za-z_][\w-]*\s*\}\}")
"""How other templates write placeholders."""
_FRAMING = {"connection", "content-length", "transfer-encoding"}
"""The headers that follow from a call, and would contradict it."""
_LONG = 10_000
"""A number from here on may be a key; a smaller one says how much of something there is to be."""

Plain: TypeAlias = str | int | float | bool
Reads: TypeAlias = Literal["history", "session", "last_item", "user"]

_ANSWERS = (
    {"method", "values", "query", "body", "item", "question", "reads"}
    | {"tensors", "max_k", "first_page", "answers", "answer_id", "items", "id"}
)  # fmt: skip
"""The settings that decide what an answer is, next to the url."""
_SHOWS: dict[Reads, set[str]] = {
    "history": {"history", "length", "last_item"},
    "session": {"item"},
    "last_item": {"last_item"},
    "user": {"user"},
}
"""The placeholders that stand for whom a question is about."""
_PLACES = {"offset", "page_number"}
"""The placeholders that stand for where a page begins, and are counted here."""
_TAKEN = (
    set().union(*_SHOWS.values())
    | _PLACES
    | {"k", "gives_scores", "session", "page", "questions", "question_id", "time"}
)
"""The placeholders that have a meaning already."""


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


ListPath: TypeAlias = Annotated[str, AfterValidator(_checked_list)]
IdFormat: TypeAlias = Annotated[str, AfterValidator(_checked_format)]


class ShapeSettings(Settings):
    """How an API wants to be asked, and how it answers; by default ``{"history", "k"}`` and ``{"items", "scores"}``.

    Templates hold placeholders. Of whom is asked: ``{history}``, ``{length}``, ``{last_item}``; ``{item}`` in the
    replay of a session; ``{user}``, alone or beside the first three. Of what: ``{k}``, ``{gives_scores}``,
    ``{session}`` (new for each question), ``{questions}`` where one call asks several, ``{question_id}`` for the place
    of each among them. And each name in ``values``.
    Another name in braces is refused.

    An API that wants some user's id and asks not whose is given ``{session}``, or one in ``values``: with ``{user}`` an
    answer is kept for each user, and may come from what the API knows of them.

    Where lists come in pages, ``{offset}`` is the number of items before a page, ``{page_number}`` its own number, and
    ``{page}`` what the reply before said under ``next_page``. Pages are put together as they come, whole, however long
    they are: an item that is on two of them is one that the list names twice, and the first page without a new one ends
    the list, not one that is short.
    """

    never_shown = frozenset(
        {"url", "method", "headers", "query", "values", "body", "question", "item", "signature", "identity"}
    )

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
    """Headers of each call; ``${NAME}`` stands for the environment variable NAME, the only place for a secret. Beside
    it a header whose name sounds secret holds no more than a scheme such as ``Bearer``."""
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
    tensors: Stacking | None = None
    """How questions that are lists of tensors, with ``data`` each, become one list, a row for each question; shapes are
    added. What lies at ``answers`` is then the reply's tensors, and each answer its row of all of them."""
    reads: Reads = "history"
    """What it is told of whom it answers for: the ``history`` in one call; the history item by item, in a ``session``
    that it keeps, one call each; the ``last_item`` alone; or the ``user``, whose history it knows by itself. With the
    history, or the last item, ``{user}`` may be told as well."""
    max_history: PositiveInt | None = None
    """Newest items of a history that are sent; all where not given."""
    max_k: PositiveInt | None = None
    """Items that one call gives at most: ``{k}`` is no more, and the size of a page where lists come in pages, by which
    calls are planned. Where they do not, they end there."""
    first_page: NonNegativeInt = 1
    """What ``{page_number}`` counts from."""
    answers: ListPath | None = None
    """Where the answer to each question lies, if a call asks several; the paths below then start there. They are taken
    in the order of the questions, unless ``answer_id`` is given."""
    answer_id: OnePath | None = None
    """Where an answer says what was sent as ``{question_id}``, by which it is told whose it is; a reply that does not
    name each question once is refused."""
    items: ListPath = "items[*]"
    """Where the list is, best item first."""
    id: OnePath = "."
    """Where in an entry of the list the item's id is; ``.`` for the entry itself."""
    score: OnePath = "scores[*]"
    """Where the score is: in an entry of the list, or, with ``[*]``, in a list of its own; empty for nowhere."""
    next_page: OnePath | None = None
    """Where the reply says what to send as ``{page}`` for more; nothing there, or null, means that there is no more."""
    missing_items: Literal["failure", "empty"] = "failure"
    """What a reply is that leaves the list out, has null for it, or has no body, as 204 has none: a ``failure``, or an
    ``empty`` answer, for an API that leaves out what is empty."""
    error: OnePath = "error"
    """Where a reply under a status of success, or one answer of several, says that it is an error; what is there makes
    it a failure, unless it is null, false, 0 or empty. Empty for nowhere."""
    gives_scores: bool = False
    """Whether to read scores; an answer without them is then a failure."""
    item_format: IdFormat | None = None
    """The API's id of an item, made from that of the data or the file, such as ``item-{id}``; ``{id}`` alone makes it
    text."""
    item_file: Location | None = None
    """File with the API's id of each item: columns ``id``, as in the data, and ``api_id``, sent as integers where all
    are such. The format, if there is one, is filled with these."""
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
        self._check_variables()
        self._check_placeholders()
        self._check_secrets()
        self._check_calls()
        self._check_headers()
        if address_parts(self.address, "url", _EXAMPLE).fragment:
            raise _refusal(f"url: what follows the # in {without_secrets(self.url)} is not sent; leave it out")
        if self.gives_scores and not self.score:
            raise _refusal("gives_scores is set, but this API gives none; leave it out, or say in score where they are")
        return self

    def _check_secrets(self) -> None:
        """Refuse what looks like a secret, without showing it."""
        address = address_parts(self.address, "url", _EXAMPLE)
        given = {
            "url": dict(parse_qsl(f"{address.query}&{address.fragment}")),
            **{table: getattr(self, table) for table in ("query", "values", "body", "question", "item")},
        }
        found = [f"{table}: {name}" for table, value in given.items() for name in _texts(value) if sounds_secret(name)]
        if "@" in address.netloc or found:
            place = found[0] if found else "url"
            raise _refusal(
                f"{place} must hold no secret, it is written to results; send it in a header from the environment"
            )
        for name, value in self.headers.items():
            if sounds_secret(name) and not names_secrets(value):
                raise _refusal(
                    f"header {name} carries a secret, which settings must not hold; write ${{NAME}}, alone or after a "
                    "scheme such as Bearer, and put the rest into the environment variable NAME"
                )

    def _check_variables(self) -> None:
        """Refuse environment variables where they are not put in."""
        told = self.model_dump(include={"url", "query", "values", "body", "question", "item", "signature"})
        for place, value in told.items():
            if named := variables(json.dumps(value)):
                raise _refusal(
                    f"{place}: ${{{named[0]}}} would be sent as it stands, as environment variables are put into "
                    "headers alone; send a secret in a header, or by signature, and write out what is none"
                )

    def _check_placeholders(self) -> None:
        """Refuse a placeholder that stands for nothing, and calls that do not say whom they are about."""
        own, shown = set(self.values), _SHOWS[self.reads]
        if wrong := [name for name in own if not _NAME.fullmatch(name) or name in _TAKEN]:
            raise _refusal(f"values.{wrong[0]}: choose a name of lower-case letters, digits and _ that is not taken")
        one = own | shown | self._beside | {"k", "gives_scores", "session"}
        call = one | _PLACES if self.question is None else own | {"k", "gives_scores"}
        more = {"page"} if self.question is None else set()
        for where, template, known in (
            ("url", self.url, call),
            ("query", dict(self.query), call | more),
            ("body", self.body, call | (more or {"questions"})),
            ("question", self.question, one | {"question_id"}),
            ("item", self.item, own | {"item", "time"}),
            ("headers", dict(self.headers), own),
        ):
            if unknown := names(template) - known:
                raise _refusal(
                    f"{where}: {{{min(unknown)}}} stands for nothing here; {self._instead(min(unknown))}use one of: "
                    f"{', '.join(sorted(known))}"
                )
            if doubled := _texts_like(_DOUBLED, template):
                raise _refusal(f"{where}: {doubled[0]} would be sent with braces around the value; write single ones")
        if isinstance(self.body, str) and (self.body.lstrip().startswith("[") or '"' in self.body):
            raise _refusal(
                f"body: {self.body[:40]!r} is a text, which JSON puts between quotes; write a table, such as "
                '{ history = "{history}" }, or one placeholder'
            )
        told = "item" if self.reads == "session" else self.reads
        if told not in self.placeholders:
            others = [reads for reads in ("last_item", "user") if reads in self.placeholders]
            instead = f", or reads be {others[0]!r}, as that is what they name" if others else ""
            raise _refusal(f"reads is {self.reads!r}, so url, query, body or question must name {{{told}}}{instead}")

    def _instead(self, unknown: str) -> str:
        """Say what would make a placeholder stand for something."""
        if self.reads == "user" and unknown in _SHOWS["history"]:
            return "set reads to 'history' or 'last_item', with which {user} may stand as well, or "
        return f"set values.{unknown}, or " if _NAME.fullmatch(unknown) and unknown not in _TAKEN else ""

    def _check_calls(self) -> None:
        """Refuse settings that contradict each other about how many calls a question takes."""
        used = self.placeholders
        if self.method == "GET" and self.body is not None:
            raise _refusal("body: GET sends none; use query, or method POST")
        if self.reads == "session" and ("session" not in used or self.in_pages or self.question is not None):
            raise _refusal(
                "the replay of a session must name {session}, and asks one question at a time, without pages"
            )
        if ("page" in used) != (self.next_page is not None):
            raise _refusal("{page} says where a page begins, and next_page where to read that; give both or neither")
        if self.in_pages and self.max_k is None:
            turned = min(used & (_PLACES | {"page"}))
            raise _refusal(f"{{{turned}}} turns pages, so max_k must say how many items a page has, at least about")
        if (self.question is None) != (self.answers is None):
            raise _refusal("question is what one call asks several of, answers where their answers lie; give both")
        if (self.question is None) != ("questions" not in used):
            raise _refusal("question and {questions} in the body belong together; give both or neither")
        if self.question is None and self.batch_size > 1:
            raise _refusal("batch_size: several questions in one call need question and answers")
        if (self.answer_id is None) != ("question_id" not in used):
            raise _refusal(
                "{question_id} says which question it is, and answer_id where to read that; give both or neither"
            )
        if self.tensors is not None and not _are_tensors(self.question):
            raise _refusal('tensors: question must be a list of tensors, whose data is a list or "{history}"')

    def _check_headers(self) -> None:
        """Refuse headers that the call itself sets."""
        for name in self.headers:
            if name.lower() in _FRAMING:
                raise _refusal(f"header {name} follows from the call itself, and is added to it; leave it out")

    @property
    def placeholders(self) -> set[str]:
        """What a call names."""
        return names([self.url, dict(self.query), self.body, self.question])

    @property
    def _beside(self) -> set[str]:
        """The placeholders that may stand beside those for whom a question is about."""
        return {"user"} if self.reads in ("history", "last_item") else set()

    @property
    def names_user(self) -> bool:
        """Whether a call names the user beside the history."""
        return bool(self.placeholders & self._beside)

    @property
    def address(self) -> str:
        """The url with ``values`` put in."""
        return write(self.url, {name: self.values.get(name, f"{{{name}}}") for name in names(self.url)})

    @property
    def in_pages(self) -> bool:
        """Whether a list may take several calls."""
        return bool(self.placeholders & (_PLACES | {"page"}))

    @property
    def newest(self) -> int | None:
        """Newest items of a history that can make a difference; ``None`` for all."""
        return 1 if self.reads == "last_item" else self.max_history

    @property
    def fingerprint(self) -> str:
        """What tells this API from others at the same address; empty for the default shape."""
        told = {
            name: value for name, value in self.model_dump().items() if name in _ANSWERS and value != _default(name)
        }
        if plain := {name.lower(): value for name, value in self.headers.items() if not variables(value)}:
            told["headers"] = plain  # one of them may name a model; those with secrets say who asks
        if self.gives_scores and self.score != _default("score"):
            told["score"] = self.score
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12] if told else ""

    def item_ids(self, ids: IdMap) -> IdMap:
        """Return the items in the ids that the API speaks.

        Raises:
            SettingsError: when the file names no id for an item, or one id twice, or padding looks like an item.
            DataError: when it cannot be read.
        """
        named = _formatted(ids if self.item_file is None else self._filed(ids, self.item_file), self.item_format)
        if self.tensors is not None:
            _check_padding(self.tensors.padding, named)
        return named

    def user_ids(self, ids: IdMap) -> IdMap:
        """Return the users in the ids that the API speaks."""
        return _formatted(ids, self.user_format)

    @staticmethod
    def _filed(ids: IdMap, path: str) -> IdMap:
        """Return the ids that a file gives to items."""
        frames = [table.frame for table in open_tables(path, {"id": "id", "api_id": "api_id"})]
        pairs = pl.concat(frames, how="vertical_relaxed").select(pl.col("id").cast(pl.String), "api_id").unique()
        if pairs["id"].n_unique() < len(pairs) or pairs["api_id"].n_unique() < len(pairs):
            raise SettingsError(f"{path} must name each id and each api_id once, but names one twice.")
        named = ids.raw.cast(pl.String).to_frame("id").join(pairs, on="id", how="left", maintain_order="left")
        if missing := named.filter(pl.col("api_id").is_null())["id"].to_list():
            raise SettingsError(
                f"{path} gives no api_id for {len(missing):,} of {len(ids):,} items, for example "
                f"{missing[:3]}; add them, or leave the items out of the data."
            )
        api_ids, bad = parse_ids(named["api_id"], text_ids=False)
        if len(bad):
            raise SettingsError(f"{path}: an api_id {bad['problem'][0]}.")
        return IdMap(api_ids, first=ids.first)


def _formatted(ids: IdMap, format: str | None) -> IdMap:
    if format is None:
        return ids
    before, after = format.split("{id}")
    return IdMap(before + ids.raw.cast(pl.String) + after, first=ids.first)


def _check_padding(padding: int | str, ids: IdMap) -> None:
    """Refuse what cannot be told from an item, or does not fit into a tensor with items."""
    if isinstance(padding, str) != ids.is_text:
        kind = "text" if ids.is_text else "integers"
        raise _refusal(f"tensors: padding is {padding!r}, but ids are {kind}; set tensors.padding, or item_format")
    if ids.find([padding])[0] >= 0:
        raise _refusal(
            f"tensors: padding {padding!r} is the id of an item; set tensors.padding to what the model takes for none"
        )


def _are_tensors(question: Any) -> bool:
    """Say whether a question is a list of tensors of one dimension."""
    return isinstance(question, list) and all(
        isinstance(tensor, Mapping) and (tensor.get("data") == "{history}" or isinstance(tensor.get("data"), list))
        for tensor in question
    )


def _texts_like(pattern: re.Pattern[str], template: Any) -> list[str]:
    """Return what in the texts of a template matches."""
    return pattern.findall(json.dumps(template, ensure_ascii=False))


def _texts(template: Any, name: str | None = None) -> Iterator[str]:
    """Yield the names of all members, at any depth, that hold a text as it stands, or a number as long as a secret."""
    if isinstance(template, Mapping):
        for inner, value in template.items():
            yield from _texts(value, inner)
    elif isinstance(template, list):
        for value in template:
            yield from _texts(value, name)
    elif name is not None and (
        (isinstance(template, str) and not names(template)) or (isinstance(template, int) and abs(template) >= _LONG)
    ):
        yield name


def _default(name: str) -> Any:
    return ShapeSettings.model_fields[name].get_default(call_default_factory=True, validated_data={})


def _refusal(reason: str) -> SettingsError:
    """Not a ``ValueError``, to which the settings around would be added, with whatever they hold."""
    return SettingsError(f"http teacher: {reason}")
