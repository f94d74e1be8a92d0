"""Secrets: where they are read, which names sound like one, and how none is shown.

They stay in environment variables, which settings only name.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from functools import cache, lru_cache
from html.entities import html5
from urllib.parse import SplitResult, urlsplit

from recdistill.errors import SettingsError

_SECRET = re.compile(
    r"auth|cookie|key|token|secret|passw|passphrase|passcode|pwd|jwt|bearer|signature|credential"
    r"|sess(?:ion)?_?id$|(?:^|_)(?:pass|pw|sig|sign|sid|otp|session)$"
)
"""What names of secrets hold, or end in as a word."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PART = rf'(?:[a-z][\w.-]*=)?"?{_VARIABLE.pattern}"?'
_PROOF = re.compile(
    r"(?:(?:basic|bearer|digest|dpop|jwt|oauth|token|key|api[-_]?key|geniekey|aws|splunk|ssws|bot)\s+)?"
    rf"{_PART}(?:[;,:./|-]\s*{_PART})*",
    re.IGNORECASE,
)
"""A header that holds nothing of a secret: variables, after a scheme, names of parameters, and between separators."""
_SHORTEST = 6
"""Letters of what is hidden as a part of a header; shorter ones are settings such as ``secure=true``."""


def variables(text: str) -> list[str]:
    """Return the environment variables that a text names.

    >>> variables("Bearer ${SHOP_TOKEN}")
    ['SHOP_TOKEN']
    """
    return _VARIABLE.findall(text)


def sounds_secret(name: str) -> bool:
    """Say whether a value of that name must not stand in settings.

    >>> [sounds_secret(name) for name in ("X-Api-Key", "userPwd", "sig", "passage", "design")]
    [True, True, True, False, False]
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(_SECRET.search(spelled.lower()) for spelled in (name, "_".join(words)))


def names_secrets(text: str) -> bool:
    """Say whether a header's value names its secrets, and holds none.

    >>> [names_secrets(text) for text in ("Bearer ${TOKEN}", "id=${ID}; key=${KEY}", "sk-live-1 ${TENANT}")]
    [True, True, False]
    """
    return _PROOF.fullmatch(text) is not None


def address_parts(url: str, name: str, example: str) -> SplitResult:
    """Take a full address apart; ``name`` is the setting's, for the error.

    Raises:
        SettingsError: for what no call can go to; shows the address without secrets.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port beyond 65535, or half an IPv6 address
        usable = False
    if not usable:
        raise SettingsError(
            f"http teacher: {name} must be a full address like {example}, but is {without_secrets(url)}"
        )
    return parts


def without_secrets(url: str) -> str:
    """Show an address without what may be a password or a key in it.

    >>> without_secrets("me:pass@shop.example/r"), without_secrets("shop.example?key=1")
    ("'***@shop.example/r'", "'shop.example…'")
    """
    place = url.rpartition("@")[2]
    shown = re.split("[?#]", place)[0]
    return repr(("***@" if place != url else "") + shown + ("…" if shown != place else ""))


def fill_in(text: str) -> str:
    """Put environment variables into a header.

    Raises:
        SettingsError: for a variable that is not set, or holds what no header can.
    """

    def held(found: re.Match[str]) -> str:
        value = secret(found[1])
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise SettingsError(
                f"environment variable {found[1]} holds a line break, letters outside ASCII, or a space at an end, "
                "which no header can."
            )
        return value

    return _VARIABLE.sub(held, text)


def secret(name: str) -> str:
    """Return what an environment variable holds.

    Raises:
        SettingsError: when it is not set.
    """
    if not (value := os.environ.get(name, "")):
        raise SettingsError(f"environment variable {name} is not set; the API needs it to know who is asking.")
    return value


def bare(name: str) -> str:
    """Return what an environment variable holds that is a secret and nothing around it.

    Raises:
        SettingsError: when it is not set, or ends or begins with a space or a line break, as one read from a file may.
    """
    if (value := secret(name)) != value.strip():
        raise SettingsError(f"environment variable {name} holds a line break or a space at an end; take it away.")
    return value


def credentials(value: str) -> list[str]:
    """Return what a header may say, and what is secret in it by itself: no scheme, each parameter, a pair in base 64.

    >>> credentials("Basic YW5uOmh1bnRlcjIy")
    ['Basic YW5uOmh1bnRlcjIy', 'YW5uOmh1bnRlcjIy', 'ann:hunter22', 'hunter22']
    >>> credentials("theme=dark; session=9f8e7d6c")
    ['theme=dark; session=9f8e7d6c', '9f8e7d6c']
    """
    scheme, _, rest = value.partition(" ")
    bare = rest.strip() if rest and re.fullmatch(r"[\w-]+", scheme) else value
    parts = [re.split("[=:]", part, maxsplit=1)[-1].strip(' "') for part in re.split("[;,]", bare)]
    pairs = [pair for part in (bare, *parts) if (pair := _pair(part))]
    passwords = [pair.partition(":")[2] for pair in pairs]
    long = [part for part in (*parts, *pairs) if len(part) >= _SHORTEST]
    return list(dict.fromkeys([value, bare, *long, *filter(None, passwords)]))


def hide(text: str, secrets: Iterable[str]) -> str:
    r"""Take secrets out of a text, however they are written: for an address, in JSON, HTML or code, or in base 64.

    >>> hide(r"key s3cret/1, s3cret%2f1, s3cret\/1, s3cret\u002F1, s3cret&#47;1", ["s3cret/1"])
    'key ***, ***, ***, ***, ***'
    """
    forms = {form for value in filter(None, secrets) for form in (value, *_in_base_64(value))}
    for form in sorted(forms, key=len, reverse=True):
        text = _spelled(form).sub("***", text)
    return text


def _pair(text: str) -> str:
    """Return the user and password that HTTP Basic authentication writes so; empty for anything else."""
    encoded = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        plain = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode()
    except ValueError:
        return ""
    return plain if ":" in plain and plain.isprintable() else ""


def _in_base_64(value: str) -> list[str]:
    """Return a text in base 64, as it is usually written and for addresses: by itself, and as a part of another text.

    Of a part those characters are left out that depend on what stands around it.
    """
    plain = value.encode()
    encoded = [b64encode(plain).decode().rstrip("=")]
    for before in range(3):
        begin, end = -(-8 * before // 6), 8 * (before + len(plain)) // 6
        if end - begin >= _SHORTEST:
            encoded.append(b64encode(bytes(before) + plain).decode()[begin:end])
    return [form for text in encoded for form in (text, text.replace("+", "-").replace("/", "_"))]


@lru_cache(maxsize=256)
def _spelled(value: str) -> re.Pattern[str]:
    """Return a pattern for a text whose characters may be written in any way each."""
    return re.compile("".join(map(_spelling, value)))


def _spelling(char: str) -> str:
    """Return a pattern for a character, as it stands or in the ways that addresses, forms, JSON, HTML and code have."""
    if char.isascii() and char.isalnum():
        return char
    in_form = {" ": r"[+\s]", "+": "[+ ]"}.get(char, re.escape(char))
    in_address = "".join(f"%(?:25){{0,3}}{byte:02x}" for byte in char.encode())
    in_json = re.escape(json.dumps(char)[1:-1])
    in_code = rf"\\{{1,8}}(?:{re.escape(char)}|u{ord(char):04x}|x{ord(char):02x})"
    in_html = "|".join([f"#0{{0,6}}{ord(char)}", f"#x0{{0,6}}{ord(char):x}", *_entities().get(char, [])])
    return f"(?:{in_form}|(?i:{in_address}|{in_json}|{in_code}|&(?:amp;){{0,3}}(?:{in_html});?))"


@cache
def _entities() -> dict[str, list[str]]:
    """Return the names that HTML has for a character."""
    names: dict[str, list[str]] = {}
    for name, char in html5.items():
        names.setdefault(char, []).append(name.rstrip(";"))
    return names
