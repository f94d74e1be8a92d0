"""Turn raw columns into ids and times, and name every row that does not fit."""

from __future__ import annotations

from typing import Literal, TypeAlias

import polars as pl

from recdistill.errors import DataError

Clock: TypeAlias = Literal["a number", "a date or time without a zone", "a time with a zone"]
"""The three ways to write a time; they cannot be compared with each other."""

_MISSING = ["", "null", "none", "nan", "na", "n/a", "<na>", "undefined"]
"""Words that programs write where an id is missing; compared in lower case."""
_DECIMAL = r"^\s*[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)\s*$"
_LOCAL = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
_FLOAT_ADVICE = (
    "ids are integers or strings; a table library turns integer ids into decimal numbers when some are missing: "
    "drop those rows and store the column as integers"
)


def problems(raw: pl.Series, wrong: pl.Series, reason: str) -> pl.DataFrame:
    """List the rows where ``wrong`` holds: columns ``row`` (from 1), ``column`` and ``problem``."""
    rows = wrong.fill_null(False).arg_true()
    value = raw.gather(rows).cast(pl.String)
    table = pl.DataFrame({"row": rows.cast(pl.Int64) + 1, "value": value})
    shown = (
        pl.when(pl.col("value").str.strip_chars() == "")
        .then(pl.lit("is empty"))
        .otherwise(pl.format("is '{}', {}", pl.col("value").str.slice(0, 60), pl.lit(reason)))
    )
    return table.select("row", pl.lit(raw.name).alias("column"), shown.fill_null("is empty").alias("problem"))


def parse_ids(raw: pl.Series, *, text_ids: bool) -> tuple[pl.Series, pl.DataFrame]:
    """Return the ids, int64 or string with null where unusable, and the list of unusable rows.

    Text becomes integers only if every id, written back, gives the very same text.

    Raises:
        DataError: when the column's type cannot hold ids.
    """
    if raw.dtype in (pl.Categorical, pl.Enum):
        raw = raw.cast(pl.String)
    if raw.dtype == pl.String:
        return _ids_from_text(raw, text_ids)
    if raw.dtype.is_integer():
        ids = raw.cast(pl.Int64, strict=False)
        bad = problems(raw, ids.is_null(), "beyond 64-bit integers; store the column as strings")
        return (ids.cast(pl.String) if text_ids else ids), bad
    if raw.dtype.is_float():
        everywhere = pl.repeat(True, len(raw), eager=True)
        return pl.repeat(None, len(raw), dtype=pl.Int64, eager=True), problems(
            raw, everywhere, f"a decimal number; {_FLOAT_ADVICE}"
        )
    if raw.dtype == pl.Null:
        return raw.cast(pl.Int64), problems(raw, raw.is_null(), "")
    raise DataError(f"column {raw.name!r} holds {raw.dtype}; ids are integers or strings, so cast it first")


def _ids_from_text(text: pl.Series, keep_text: bool) -> tuple[pl.Series, pl.DataFrame]:
    if keep_text:
        missing = (text.str.strip_chars() == "").fill_null(True)
        return _blank(text, missing), problems(text, missing, "")
    numbers = text.cast(pl.Int64, strict=False)
    other = (numbers.cast(pl.String) != text).fill_null(True)  # all but plain integers
    if not other.any():
        return numbers, problems(text, other, "")
    words = text.str.strip_chars().str.to_lowercase()
    missing = other & words.is_in(_MISSING).fill_null(True)
    decimal = other & text.str.contains(_DECIMAL).fill_null(False)
    advice = "pass text_ids=True (in a run file: text_ids = true; data describe: --text-ids) if it is a real one"
    bad = problems(text, missing, f"which reads as a missing id; {advice}")
    if (missing | decimal | ~other).all():
        bad = pl.concat([bad, problems(text, decimal, f"a decimal number; {_FLOAT_ADVICE}")])
        return _blank(numbers, other), bad
    return _blank(text, missing), bad


def _blank(values: pl.Series, where: pl.Series) -> pl.Series:
    return pl.select(pl.when(~where).then(values)).to_series()


def parse_times(raw: pl.Series) -> tuple[pl.Series, pl.DataFrame, Clock]:
    """Return the times, int64 or float64 with null where unusable, the unusable rows, and how times are written.

    Dates and ISO text become seconds since 1970-01-01 UTC. Text is read the way that most rows are written.

    Raises:
        DataError: when the column's type cannot hold times.
    """
    if raw.dtype == pl.String:
        return _times_from_text(raw)
    clock: Clock = "a number"
    if raw.dtype.is_integer():
        times = raw.cast(pl.Int64, strict=False)
    elif raw.dtype.is_float() or raw.dtype.is_decimal():
        times = _finite(raw.cast(pl.Float64))
    elif raw.dtype in (pl.Date, pl.Datetime):
        times = _seconds(raw.cast(pl.Datetime("us")) if raw.dtype == pl.Date else raw)
        clock = "a time with a zone" if getattr(raw.dtype, "time_zone", None) else "a date or time without a zone"
    elif raw.dtype == pl.Null:
        times = raw.cast(pl.Int64)
    else:
        raise DataError(f"column {raw.name!r} holds {raw.dtype}; times are numbers, dates or ISO text")
    return times, problems(raw, times.is_null(), "not a time"), clock


def _times_from_text(text: pl.Series) -> tuple[pl.Series, pl.DataFrame, Clock]:
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == 0:
        return whole, problems(text, whole.is_null(), ""), "a number"
    number = _finite(text.cast(pl.Float64, strict=False))
    clean = text.str.strip_chars().str.replace("T", " ", literal=True)
    readings: dict[Clock, pl.Series] = {
        "a number": number,
        "a date or time without a zone": _parse(clean, _LOCAL),
        "a time with a zone": _parse(clean, _ZONED),
    }
    clock = min(readings, key=lambda name: readings[name].null_count())
    times = readings.pop(clock)
    if clock != "a number":
        times = _seconds(times)
    elif (whole.is_null() == number.is_null()).all():
        times = whole
    bad = times.is_null()
    mixed = bad & ~pl.select(pl.all_horizontal(*(other.is_null() for other in readings.values()))).to_series()
    form = f"while most rows hold {clock}; write all times in one way"
    unread = problems(text, bad & ~mixed, "not a time: neither a number nor like 2024-05-31 or 2024-05-31T18:30:00")
    return times, pl.concat([unread, problems(text, mixed, form)]), clock


def _parse(text: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    """Read each text with the first of the formats that fits it; null where none does."""
    times = text.str.to_datetime(formats[0], time_unit="us", strict=False)
    for form in formats[1:]:
        if times.null_count() == 0:
            break
        times = times.fill_null(text.str.to_datetime(form, time_unit="us", strict=False))
    return times


def _finite(numbers: pl.Series) -> pl.Series:
    return _blank(numbers, ~numbers.is_finite())


def _seconds(times: pl.Series) -> pl.Series:
    """Seconds since 1970-01-01 UTC: integers if no time has a fraction, otherwise decimal numbers."""
    micro = times.dt.epoch("us")
    return micro // 1_000_000 if (micro % 1_000_000 == 0).all() else micro / 1e6


def instant(text: str) -> int | float:
    """Read one ISO date or time as seconds since 1970-01-01 UTC.

    Raises:
        DataError: when it is neither.
    """
    times, bad, clock = parse_times(pl.Series("time", [text]))
    if bad.height or clock == "a number":
        raise DataError(f"{text!r} is not a date or time; write it like 2024-05-31 or 2024-05-31T18:30:00")
    seconds: int | float = times[0]
    return seconds
