"""Dates as people of twelve languages write them, and the same dates in ISO 8601.

The patterns and names are those of Unicode's CLDR as packaged in Babel. Only forms that name the month, or number it
between the signs for year, month and day, are used: 3/4/1987 is another day in Boston than in London. The facts are
days: a day that occurs in one split occurs in no other, in no language.
"""

from __future__ import annotations

import datetime
from functools import cache

from babel import Locale
from babel.dates import format_date

from atoll.tasks.generated.partition import NUM_ROWS, Split, split_of, split_random

LOCALES = ("en", "en_GB", "de", "es", "fi", "fr", "it", "ja", "nl", "pl", "pt", "sv", "tr")
FIRST_DAY = datetime.date(1940, 1, 1)
LAST_DAY = datetime.date(2039, 12, 31)


def rows(split: Split, seed: int = 0) -> list[dict[str, str]]:
    """Rows with the columns `date` and `iso`; languages and forms take turns, days are drawn at random."""
    random = split_random("dates", split, seed)
    days = random.sample(_days(split), NUM_ROWS[split])
    forms = written_forms()
    written = [write_date(day, *forms[index % len(forms)]) for index, day in enumerate(days)]
    pairs = [{"date": text, "iso": day.isoformat()} for text, day in zip(written, days, strict=True)]
    random.shuffle(pairs)
    return pairs


def written_forms() -> list[tuple[str, str]]:
    """Every (locale, CLDR pattern) in use; equal patterns of a locale once."""
    forms: dict[tuple[str, str], None] = {}
    for locale in LOCALES:
        patterns = Locale.parse(locale).date_formats
        for length in ("full", "long", "medium"):
            pattern = str(patterns[length].pattern)
            if "MMM" in pattern or "月" in pattern:
                forms[locale, pattern] = None
    return list(forms)


def write_date(day: datetime.date, locale: str, pattern: str) -> str:
    """The day in one written form."""
    return str(format_date(day, format=pattern, locale=locale))


@cache
def _days(split: Split) -> tuple[datetime.date, ...]:
    num_days = (LAST_DAY - FIRST_DAY).days + 1
    days = (FIRST_DAY + datetime.timedelta(index) for index in range(num_days))
    return tuple(day for day in days if split_of(day.isoformat()) == split)
