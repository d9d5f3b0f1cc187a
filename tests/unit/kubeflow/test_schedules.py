import re

import pytest

from medseg.kubeflow.schedules import check_schedule, cron_expression, interval_seconds
from medseg.project import UserError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0 2 * * *", "0 0 2 * * *"),
        ("0 0 2 * * *", "0 0 2 * * *"),
        ("*/15 8-18 ? * mon-fri", "0 */15 8-18 ? * MON-FRI"),
        ("0 0 0 29 2 *", "0 0 0 29 2 *"),
        ("0 0 0 30 2 MON", "0 0 0 30 2 MON"),  # Mondays of February: one of the days is enough
        ("0 0 0 30,31 2,4 ?", "0 0 0 30,31 2,4 ?"),
        ("0 5/10 * * * *", "0 5/10 * * * *"),
    ],
)
def test_cron(given: str, expected: str) -> None:
    assert cron_expression(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0 0 30 2 *", "never fires: no such month has such a day"),
        ("0 0 0 31 FEB,APR,JUN,SEP,NOV ?", "never fires"),
        ("0 2 * *", "has 4 fields: give five"),
        ("@daily", "has 1 fields"),
        ("0 60 * * * *", "has the minute '60': it goes from 0 to 59."),
        ("0 0 0 * * 7", "has the day of week '7': it goes from 0 to 6 or SUN to SAT."),
        ("0 0 0 0 * *", "has the day of month '0'"),
        ("0 0 18-8 * * *", "has a hour range that ends before it starts"),
        ("0 */0 * * * *", "has '*/0' as minute, which cannot be read"),
        ("0 0 0 L * *", "has the day of month 'L'"),
    ],
)
def test_wrong_cron(given: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        cron_expression(given)


def test_interval() -> None:
    assert [interval_seconds(text) for text in ("90", "30m", "12h", "1d12h30s")] == [
        90,
        1800,
        43_200,
        129_630,
    ]
    for text in ("", "1w", "-5", "1h 30m", "soon"):
        with pytest.raises(UserError, match="cannot be read"):
            interval_seconds(text)
    with pytest.raises(UserError, match="is zero"):
        interval_seconds("0h")


def test_one_of_the_two() -> None:
    assert check_schedule("0 2 * * *", "", 1) == ("0 0 2 * * *", None)
    assert check_schedule("", "1h", 10) == (None, 3600)
    with pytest.raises(UserError, match="either a cron or an interval"):
        check_schedule("0 2 * * *", "1h", 1)
    with pytest.raises(UserError, match="11 is not from 1 to 10"):
        check_schedule("", "1h", 11)
