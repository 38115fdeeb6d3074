"""The small tables that the task `sql` asks about, and SQLite databases that hold them with seeded rows.

Several databases with other rows in the same tables tell a wrong query from a right one that gives the same rows by
chance (Zhong et al. 2020, arXiv 2010.02840). Within a table, keys and numbers never repeat, so that a question for the
highest has one answer; every category value occurs.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass
from functools import cache
from itertools import product

NUM_TABLE_ROWS = 36
NUM_DATABASES = 8


@dataclass(frozen=True)
class Category:
    """A text column with few values; `where` is the phrase that selects one of them, with `{}` for the value."""

    name: str
    where: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """An integer column with the values low, low + step, ..."""

    name: str
    low: int
    step: int

    @property
    def values(self) -> range:
        """All values that may occur: half as many again as a table has rows."""
        return range(self.low, self.low + self.step * (NUM_TABLE_ROWS * 3 // 2), self.step)


@dataclass(frozen=True)
class Table:
    """One table: a text key that names each row, two categories, two numbers."""

    name: str
    singular: str
    key: str
    first_words: tuple[str, ...]
    last_words: tuple[str, ...]
    categories: tuple[Category, Category]
    numbers: tuple[Number, Number]

    @property
    def columns(self) -> tuple[str, ...]:
        """All column names in the order of the table."""
        return (self.key, *(column.name for column in (*self.categories, *self.numbers)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the rows, the same in every database."""
        pairs = [f"{first} {last}" for first, last in product(self.first_words, self.last_words)]
        return tuple(random.Random(self.name).sample(pairs, NUM_TABLE_ROWS))


_FIRST_NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
_LAST_NAMES = ("Adams", "Brown", "Cole", "Diaz", "Evans", "Fox", "Gray", "Hill")
_COLOURS = ("Blue", "Red", "Green", "Golden", "Silver", "White", "Black", "Amber")
_CITIES = ("Oslo", "Paris", "Lima", "Cairo", "Tokyo", "Boston")

TABLES = (
    Table("players", "player", "name", _FIRST_NAMES, _LAST_NAMES,
          (Category("team", "in the team {}", ("Lions", "Hawks", "Bears", "Sharks")),
           Category("country", "from {}", ("Spain", "Brazil", "Kenya", "Japan", "Canada"))),
          (Number("age", 17, 1), Number("salary", 2000, 100))),
    Table("employees", "employee", "name", _LAST_NAMES, _FIRST_NAMES,
          (Category("department", "in the {} department", ("sales", "legal", "design", "support")),
           Category("city", "in {}", _CITIES)),
          (Number("age", 19, 1), Number("salary", 1800, 50))),
    Table("students", "student", "name", _FIRST_NAMES, ("Ito", "Kim", "Lopez", "Meyer", "Novak", "Olsen"),
          (Category("major", "majoring in {}", ("biology", "history", "physics", "music")),
           Category("dorm", "in the dorm {}", ("North", "East", "Park"))),
          (Number("age", 16, 1), Number("score", 40, 1))),
    Table("books", "book", "title", _COLOURS, ("Rain", "Door", "Harbor", "Winter", "Letters", "Road"),
          (Category("genre", "of the genre {}", ("crime", "fantasy", "poetry", "travel")),
           Category("language", "in {}", ("English", "French", "Korean", "Arabic"))),
          (Number("price", 6, 1), Number("length", 80, 10))),
    Table("movies", "movie", "title", ("Last", "Lost", "Silent", "Broken", "Endless", "Secret"),
          ("Train", "Summer", "Planet", "Witness", "Garden", "Signal", "Island"),
          (Category("genre", "of the genre {}", ("drama", "comedy", "horror", "action")),
           Category("studio", "by the studio {}", ("Apex", "Nova", "Orbit"))),
          (Number("length", 70, 2), Number("budget", 10, 5))),
    Table("songs", "song", "title", ("Dancing", "Falling", "Waiting", "Running", "Dreaming", "Burning"),
          ("Alone", "Again", "Tonight", "Slowly", "Away", "Home", "Free"),
          (Category("artist", "by {}", ("Luna", "Kolibri", "Rex", "Mira")),
           Category("style", "in the style {}", ("jazz", "rock", "folk", "soul"))),
          (Number("length", 120, 5), Number("tempo", 60, 2))),
    Table("products", "product", "name", _COLOURS, ("Lamp", "Chair", "Kettle", "Bag", "Clock", "Mug"),
          (Category("brand", "of the brand {}", ("Acme", "Zenith", "Solid", "Purely")),
           Category("category", "in the category {}", ("home", "office", "garden", "kitchen"))),
          (Number("price", 5, 5), Number("stock", 0, 3))),
    Table("cars", "car", "model", ("Falcon", "Comet", "Bolt", "Arrow", "Vista", "Polar"),
          ("S", "GT", "One", "Max", "City", "Neo", "Sport"),
          (Category("maker", "made by {}", ("Toro", "Fenix", "Magna")),
           Category("fuel", "with {} fuel", ("petrol", "diesel", "electric", "hybrid"))),
          (Number("price", 9000, 500), Number("power", 60, 5))),
    Table("houses", "house", "street", ("Oak", "Elm", "Mill", "Lake", "King", "Church"),
          ("Street", "Lane", "Road", "Avenue", "Square", "Row", "Close"),
          (Category("city", "in {}", _CITIES), Category("style", "in the style {}", ("modern", "classic", "rustic"))),
          (Number("rent", 400, 25), Number("area", 30, 3))),
    Table("hotels", "hotel", "name", ("Grand", "Royal", "Little", "Old", "Sunny", "Quiet"),
          ("Palace", "Inn", "Lodge", "Garden", "Bay", "Terrace", "Crown"),
          (Category("city", "in {}", _CITIES), Category("chain", "of the chain {}", ("Astra", "Meridian", "Solo"))),
          (Number("capacity", 12, 4), Number("price", 40, 5))),
    Table("flights", "flight", "code", ("AX", "BT", "CL", "DV", "EK", "FR"),
          ("102", "215", "337", "448", "561", "674", "789"),
          (Category("origin", "from {}", _CITIES), Category("airline", "flown by {}", ("Skyway", "Jetly", "Aero"))),
          (Number("duration", 45, 10), Number("distance", 200, 50))),
    Table("courses", "course", "title", ("Basic", "Applied", "Modern", "Advanced", "Practical", "Digital"),
          ("Algebra", "Law", "Botany", "Ethics", "Logic", "Drawing", "Finance"),
          (Category("teacher", "taught by {}", ("Ahmed", "Bauer", "Chen", "Silva")),
           Category("level", "at the level {}", ("first", "second", "third"))),
          (Number("length", 6, 2), Number("fee", 50, 10))),
)  # fmt: skip


@cache
def database_image(seed: int) -> bytes:
    """A SQLite database with all tables, as bytes for `sqlite3.Connection.deserialize`."""
    source = random.Random(f"database/{seed}")
    connection = sqlite3.connect(":memory:")
    try:
        for table in TABLES:
            types = ["text"] * 3 + ["integer"] * 2
            columns = ", ".join(f"{name} {kind}" for name, kind in zip(table.columns, types, strict=True))
            connection.execute(f"CREATE TABLE {table.name} ({columns})")
            connection.executemany(f"INSERT INTO {table.name} VALUES (?, ?, ?, ?, ?)", _table_rows(table, source))
        connection.commit()
        return connection.serialize()
    finally:
        connection.close()


def _table_rows(table: Table, source: random.Random) -> list[tuple[str | int, ...]]:
    columns: list[list[str] | list[int]] = [source.sample(table.keys, NUM_TABLE_ROWS)]
    for category in table.categories:
        extra = source.choices(category.values, k=NUM_TABLE_ROWS - len(category.values))
        columns.append(source.sample([*category.values, *extra], NUM_TABLE_ROWS))
    columns += [source.sample(number.values, NUM_TABLE_ROWS) for number in table.numbers]
    return list(zip(*columns, strict=True))
