"""The same index on PostgreSQL, for fleets whose points no single host should hold: ``--index postgresql://HOST/NAME``.

The files stay the truth, so the database needs no backup. It holds the files of one store: a team has a database, or
a schema of one (``?options=-csearch_path%3Dteam``). Needs the extra ``postgres``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from minimax_m2.harness.history.index import NAMES, SCHEMA, TABLES, Database, Index, Row

# psycopg may be absent, and its types take only statements that are written out.
Connection = Any
SCHEMES = ("postgresql://", "postgres://")
# One writer at a time, whatever host he is on; a connection that ends lets go. Any number serves, if all know it.
LOCK = 0x6D32_6E69
WORDS = {
    "number": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "bytes": "BYTEA",
    # The order of bytes, as SQLite has it, whatever language the server speaks.
    "text": 'TEXT COLLATE "C"',
    "ordered": "",
}


class PostgresIndex(Index):
    """A connection to a server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, values: Sequence[object] = ()) -> Iterator[Row]:
        yield from self._connection.execute(statement.replace("?", "%s"), tuple(values))

    def enter(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
        """By COPY into a table of this transaction, then of it what is new: a row a round trip would take seconds."""
        names = ",".join(columns)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(f"CREATE TEMP TABLE incoming ON COMMIT DROP AS SELECT {names} FROM {table} WITH NO DATA")
            with cursor.copy(f"COPY incoming ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            cursor.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM incoming ON CONFLICT DO NOTHING")
            new = cursor.rowcount
            cursor.execute("DROP TABLE incoming")
        return new

    def transaction(self) -> AbstractContextManager[object]:
        return self._connection.transaction()


class Postgres(Database):
    """A database by URL. Raises ValueError for what is no such URL, without psycopg, or where nobody answers."""

    def __init__(self, url: str) -> None:
        if not url.startswith(SCHEMES):
            raise ValueError(
                "--index is no URL of PostgreSQL; write postgresql://HOST/NAME, or leave it out for a file"
            )
        self._url = url

    @contextmanager
    def writing(self) -> Iterator[Index]:
        with self._connected() as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
            index = PostgresIndex(connection)
            if not _has_tables(index):
                with connection.transaction():
                    _make(connection)
            index.checked()
            yield index

    @contextmanager
    def anew(self) -> Iterator[Index]:
        with self._connected() as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
            # Readers see the old index until all is entered.
            with connection.transaction():
                connection.execute(f"DROP TABLE IF EXISTS {','.join(NAMES)}")
                _make(connection)
                yield PostgresIndex(connection)

    @contextmanager
    def reading(self) -> Iterator[Index]:
        with self._connected() as connection:
            connection.execute("SET default_transaction_read_only = on")
            yield PostgresIndex(connection)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
            from psycopg.rows import dict_row
        except ImportError as error:
            raise ValueError("psycopg is not here; pip install 'minimax-m2-harness[postgres]'") from error
        about: dict[str, Any] = {}
        connect: Any = psycopg.connect
        try:
            about = dict(conninfo_to_dict(self._url))
            connection = connect(self._url, autocommit=True, connect_timeout=10, row_factory=dict_row)
        except psycopg.Error as error:
            # A URL may hold a password; its host and name are said, and no more.
            where = "its URL" if isinstance(error, psycopg.ProgrammingError) else f"{about.get('host', 'localhost')}"
            told = str(error).strip().splitlines()[0].replace(self._url, "URL")
            raise ValueError(f"the index at {where} cannot be reached: {told}") from error
        with connection:
            yield connection


def _has_tables(index: PostgresIndex) -> bool:
    (row,) = index.rows("SELECT to_regclass('about') IS NOT NULL AS made")
    return bool(row["made"])


def _make(connection: Connection) -> None:
    connection.execute(TABLES.format(**WORDS))
    connection.execute("INSERT INTO about VALUES (%s)", (SCHEMA,))
