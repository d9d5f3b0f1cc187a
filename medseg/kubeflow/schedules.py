"""Schedules of recurring runs, checked before Kubeflow takes them."""

from __future__ import annotations

import re

from medseg.project import UserError

_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_FIELDS = [
    ("second", 0, 59, []),
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of month", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _DAYS),
]
_LENGTHS = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def check_schedule(cron: str, every: str, concurrency: int) -> tuple[str | None, int | None]:
    """Reads a schedule.

    Args:
        cron: A cron expression, or
        every: an interval; one of the two.
        concurrency: How many of its runs may run at once.

    Returns:
        The cron expression as KFP takes it, and the interval in seconds; one of them is None.

    Raises:
        UserError: It cannot be read, never fires, or KFP does not allow it.
    """
    if bool(cron) == bool(every):
        raise UserError("a schedule is either a cron or an interval: give one of the two.")
    if not 1 <= concurrency <= 10:
        raise UserError(f"the concurrency {concurrency} is not from 1 to 10.")
    return cron_expression(cron) if cron else None, interval_seconds(every) if every else None


def cron_expression(text: str) -> str:
    """A schedule in KFP's cron notation: six fields, the first one the second.

    KFP reads cron with robfig/cron version 1, where five fields mean second to month: crontab's
    ``0 2 * * *`` would run at two minutes past every hour. Five fields are therefore taken as
    crontab's and get the second 0 in front.

    Args:
        text: Five fields as in crontab, or KFP's six.

    Raises:
        UserError: A field is wrong, or no day fits the expression, such as 30 February.
    """
    fields = text.upper().split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise UserError(
            f"the cron {text!r} has {len(fields)} fields: give five (minute, hour, day of month, "
            "month, day of week) or six with the second in front."
        )
    values = [_values(text, field, *spec) for field, spec in zip(fields, _FIELDS, strict=True)]
    days, months = values[3], values[4]
    any_weekday = fields[5][0] in "*?"
    # where both kinds of day are limited one of them is enough (robfig/cron, as in crontab)
    if any_weekday and not any(day <= _LENGTHS[month - 1] for month in months for day in days):
        raise UserError(f"the cron {text!r} never fires: no such month has such a day.")
    return " ".join(fields)


def _values(text: str, field: str, name: str, low: int, high: int, names: list[str]) -> set[int]:
    def number(word: str) -> int:
        if word in names:
            return names.index(word) + low
        if not word.isdecimal() or not low <= int(word) <= high:
            raise UserError(
                f"the cron {text!r} has the {name} {word!r}: it goes from {low} to {high}"
                f"{f' or {names[0]} to {names[-1]}' if names else ''}."
            )
        return int(word)

    values: set[int] = set()
    for part in field.split(","):
        match = re.fullmatch(r"([*?]|\w+)(?:-(\w+))?(?:/([1-9][0-9]*))?", part)
        if not match or (match[1] in "*?" and match[2]):
            raise UserError(f"the cron {text!r} has {part!r} as {name}, which cannot be read.")
        start = low if match[1] in "*?" else number(match[1])
        end = high if match[1] in "*?" or match[3] else start  # 5/10: from 5 on, every tenth
        if match[2]:
            end = number(match[2])
        if end < start:
            raise UserError(f"the cron {text!r} has a {name} range that ends before it starts.")
        values.update(range(start, end + 1, int(match[3] or 1)))
    return values


def interval_seconds(text: str) -> int:
    """An interval such as ``90``, ``30m`` or ``1d12h``, in seconds.

    Args:
        text: Numbers, each with ``s``, ``m``, ``h`` or ``d``; seconds without.

    Raises:
        UserError: It cannot be read, or is zero.
    """
    if not re.fullmatch(r"\d+|(\d+[smhd])+", text):
        raise UserError(f"the interval {text!r} cannot be read: write it as 30m, 12h or 1d.")
    if text.isdecimal():
        seconds = int(text)
    else:
        seconds = sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text))
    if seconds == 0:
        raise UserError(f"the interval {text!r} is zero: give at least 1s.")
    return seconds
