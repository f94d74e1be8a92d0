"""What is sent, with placeholders: ``{"user": "{user}", "count": "{k}"}``.

A text that is one placeholder and nothing else becomes the value itself, a number, a list, an object; inside a longer
text the value is written out. A member or parameter whose placeholder has no value (``None``) is left out. Names in
braces are placeholders; ``${NAME}`` and JSON braces in a text stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_][\w-]*)\}")


def names(template: Any) -> set[str]:
    """Return the placeholders of a template.

    >>> sorted(names({"count": "{k}", "filter": ["user is {user}"]}))
    ['k', 'user']
    """
    if isinstance(template, str):
        return set(_PLACEHOLDER.findall(template))
    if isinstance(template, dict):
        return set().union(*(names(value) for value in template.values()))
    if isinstance(template, list):
        return set().union(*(names(value) for value in template))
    return set()


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """Put values into a template.

    >>> template = {"count": "{k}", "page": "{page}", "after": "page-{page}", "id": "item-{item}"}
    >>> fill(template, {"k": 5, "page": None, "item": 7})
    {'count': 5, 'id': 'item-7'}
    """
    if isinstance(template, str):
        if whole := _PLACEHOLDER.fullmatch(template):
            return values[whole[1]]
        return None if any(values[name] is None for name in names(template)) else write(template, values)
    if isinstance(template, dict):
        filled = {name: fill(value, values) for name, value in template.items()}
        return {name: value for name, value in filled.items() if value is not None or template[name] is None}
    if isinstance(template, list):
        return [fill(value, values) for value in template]
    return template


def write(template: str, values: Mapping[str, Any]) -> str:
    """Put values into a text.

    >>> write("/users/{user}", {"user": "ann"})
    '/users/ann'
    """
    return _PLACEHOLDER.sub(lambda found: text(values[found[1]]), template)


def text(value: Any) -> str:
    """Return a value as it is written in an address: lists with commas, truth in lower case.

    >>> text([1, "b"]), text(True)
    ('1,b', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(text(entry) for entry in value) if isinstance(value, list) else str(value)
