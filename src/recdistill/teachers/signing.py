"""Proof of who is asking. Secrets stay in environment variables, which settings only name."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import time
from base64 import b64encode
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import AfterValidator, Field

from recdistill.errors import SettingsError
from recdistill.settings import Settings
from recdistill.teachers.exchange import Call
from recdistill.teachers.secrets import address_parts, bare, secret, sounds_secret

_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
_GOOGLE = "https://oauth2.googleapis.com/token"
"""Whom a service account must address to get a token, wherever it asks for it."""
_ASSERTED = 3600
"""Seconds for which a service account says who it is; no token of Google lasts longer."""


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):  # what was given is not shown: it may be the secret itself
        raise SettingsError(
            "http teacher: signature names an environment variable, in capitals, digits and _; put the secret into it."
        )
    return name


def _checked_address(url: str) -> str:
    address = address_parts(url, "token_url", "https://login.example/token")
    if "@" in address.netloc or any(sounds_secret(name) for name, _ in parse_qsl(address.query)):
        raise SettingsError("http teacher: token_url must hold no secret, it is written to results")
    return url


Variable: TypeAlias = Annotated[str, AfterValidator(_checked_name)]
"""The name of an environment variable."""
Address: TypeAlias = Annotated[str, AfterValidator(_checked_address)]
"""A full address that holds no secret."""


class SigV4(Settings):
    """Amazon's signature, version 4; needs ``recdistill[aws]``."""

    kind: Literal["sigv4"]
    region: str
    """Such as ``eu-west-1``."""
    service: str = "personalize"
    """The name that the service signs under."""
    access_key: Variable = "AWS_ACCESS_KEY_ID"
    """Variable with the id of the key."""
    secret_key: Variable = "AWS_SECRET_ACCESS_KEY"
    """Variable with the key."""
    session_token: Variable = "AWS_SESSION_TOKEN"
    """Variable with the token of a temporary key; may be unset."""

    def sign(self, call: Call) -> Call:
        """Add the headers that sign a call now.

        Raises:
            SettingsError: without botocore, or a variable.
        """
        try:
            from botocore.auth import SigV4Auth
            from botocore.awsrequest import AWSRequest
            from botocore.credentials import Credentials
        except ImportError as error:
            raise _not_installed("aws") from error
        logging.getLogger("botocore.auth").setLevel(logging.INFO)  # for debugging it writes down session tokens
        key = Credentials(bare(self.access_key), bare(self.secret_key), self._token())
        request = AWSRequest(call.method, call.url, headers=dict(call.headers), data=call.body)
        SigV4Auth(key, self.service, self.region).add_auth(request)
        return replace(call, headers=dict(request.headers.items()))

    def secrets(self) -> list[str]:
        """Return what must never be shown."""
        bare(self.access_key)  # which is sent as it stands, and missed here
        token = self._token()
        return [bare(self.secret_key), *([token] if token else [])]

    @property
    def proof(self) -> re.Pattern[str]:
        """What a signature looks like."""
        return _digits("sha256")

    def _token(self) -> str | None:
        return bare(self.session_token) if os.environ.get(self.session_token) else None


class Hmac(Settings):
    """A time and an HMAC over path and query, both added to the query, as Recombee wants it."""

    kind: Literal["hmac"]
    key: Variable
    """Variable with the key."""
    algorithm: Literal["sha1", "sha256", "sha512"] = "sha1"
    """What is hashed with."""
    time_name: str = "hmac_timestamp"
    """Parameter of the time, in seconds."""
    sign_name: str = "hmac_sign"
    """Parameter of the signature, in hexadecimal digits."""

    def sign(self, call: Call) -> Call:
        """Add the parameters that sign a call now.

        Raises:
            SettingsError: without the variable.
        """
        url = f"{call.url}{'&' if '?' in call.url else '?'}{self.time_name}={time.time():.0f}"
        address = urlsplit(url)
        signed = f"{address.path}?{address.query}".encode()
        signature = hmac.new(bare(self.key).encode(), signed, self.algorithm).hexdigest()
        return replace(call, url=f"{url}&{self.sign_name}={signature}")

    def secrets(self) -> list[str]:
        """Return what must never be shown."""
        return [bare(self.key)]

    @property
    def proof(self) -> re.Pattern[str]:
        """What a signature looks like."""
        return _digits(self.algorithm)


class Google(Settings):
    """The bearer token of a Google service account, renewed before it ends; needs ``recdistill[google]``.

    It is asked for as that of `OAuth` is. A token from elsewhere is a header: ``Authorization = "Bearer ${TOKEN}"``.
    """

    kind: Literal["google"]
    key: Variable = "GOOGLE_SERVICE_ACCOUNT_KEY"
    """Variable with the account's key: the JSON file that Google gave, not its path."""
    scope: str = "https://www.googleapis.com/auth/cloud-platform"
    """What the token is for."""

    @property
    def token_url(self) -> str:
        """Where the token is fetched, as the key says.

        Raises:
            SettingsError: without google-auth, or the variable, or for one that holds no key.
        """
        return self._account().token_url

    def token_call(self) -> Call:
        """Return the call that is answered with a token (RFC 7523, section 2.1).

        Raises:
            SettingsError: without google-auth, or the variable, or for one that holds no key.
        """
        from google.auth import jwt

        account, now = self._account(), int(time.time())
        told = {"iss": account.email, "scope": self.scope, "aud": _GOOGLE, "iat": now, "exp": now + _ASSERTED}
        form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
        form["assertion"] = jwt.encode(account.signer, told).decode()
        return Call("POST", account.token_url, _FORM, urlencode(form).encode())

    def secrets(self) -> list[str]:
        """Return what must never be shown, next to the tokens.

        Raises:
            SettingsError: without google-auth, or the variable, or for one that holds no key.
        """
        self._account()
        return [secret(self.key)]

    def _account(self) -> _GoogleAccount:
        return _google_account(secret(self.key), self.key)


class OAuth(Settings):
    """A bearer token by OAuth 2.0 client credentials (RFC 6749, section 4.4), renewed before it ends.

    It is asked for under the limits of all calls, but charged to no budget; see `recdistill.teachers.tokens`.
    """

    kind: Literal["oauth"]
    token_url: Address
    """Where the token is fetched."""
    client_id: Variable
    """Variable with the id of the client."""
    client_secret: Variable
    """Variable with the client's secret."""
    scope: str | None = None
    """What the token is for, where the endpoint asks that; several are separated by spaces."""
    audience: str | None = None
    """Which API it is for, where the endpoint asks that."""
    secret_in: Literal["header", "body"] = "header"
    """Where id and secret are sent: as HTTP Basic authentication, or in the form."""

    def token_call(self) -> Call:
        """Return the call that is answered with a token.

        Raises:
            SettingsError: without a variable.
        """
        form = {"grant_type": "client_credentials", "scope": self.scope, "audience": self.audience}
        headers = dict(_FORM)
        if self.secret_in == "header":
            headers["Authorization"] = f"Basic {b64encode(self._basic().encode()).decode()}"
        else:
            form |= {"client_id": bare(self.client_id), "client_secret": bare(self.client_secret)}
        told = {name: value for name, value in form.items() if value is not None}
        return Call("POST", self.token_url, headers, urlencode(told, quote_via=quote).encode())

    def secrets(self) -> list[str]:
        """Return what must never be shown, next to the tokens."""
        return [bare(self.client_secret), self._basic()]

    def _basic(self) -> str:
        """Return id and secret as HTTP Basic authentication joins them, each written as in a form (section 2.3.1)."""
        return f"{quote(bare(self.client_id), '')}:{quote(bare(self.client_secret), '')}"


class _GoogleAccount(NamedTuple):
    """What the key of a service account says."""

    signer: Any
    email: str
    token_url: str


@cache
def _google_account(key: str, name: str) -> _GoogleAccount:
    try:
        from google.auth.crypt import RSASigner
    except ImportError as error:
        raise _not_installed("google") from error
    try:
        told = json.loads(key)
        return _GoogleAccount(
            RSASigner.from_service_account_info(told), told["client_email"], _checked_address(told["token_uri"])
        )
    except (ValueError, TypeError, AttributeError, KeyError):  # whose text may quote the key
        raise SettingsError(
            f"environment variable {name} does not hold the key of a Google service account, which is a JSON object."
        ) from None


def _digits(algorithm: str) -> re.Pattern[str]:
    """Return a pattern for a hash in hexadecimal digits, and for any that stand right before or behind it."""
    return re.compile(rf"[0-9a-fA-F]{{{2 * hashlib.new(algorithm).digest_size},}}")


def _not_installed(extra: str) -> SettingsError:
    return SettingsError(f"http teacher: this signature needs a package: pip install 'recdistill[{extra}]'")


Signature: TypeAlias = Annotated[SigV4 | Hmac | Google | OAuth, Field(discriminator="kind")]
SIGNATURES: dict[str, type[SigV4 | Hmac | Google | OAuth]] = {
    "sigv4": SigV4,
    "hmac": Hmac,
    "google": Google,
    "oauth": OAuth,
}
"""The kinds of signature by name."""
