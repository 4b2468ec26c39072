"""What the server saw, in SQLite or in any database that SQLAlchemy knows: figures, no pictures.

Every change of the roll-out is a row of ``changes``, which is only ever added to: the last row is
the stage. A row is written whole or not at all, whenever the process dies.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sqlalchemy import (
    JSON,
    CursorResult,
    Engine,
    ForeignKey,
    String,
    create_engine,
    delete,
    event,
    select,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from softvq.errors import UserError

DEFAULT = "sqlite:///softvq.db"


class Table(DeclarativeBase):
    """All tables."""


class Seen(Table):
    """A photo that was encoded: what its tokens and its pixels are like, never what it shows."""

    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    part: Mapped[str | None] = mapped_column(String(64), index=True)  # a hash of the part number
    tokens: Mapped[int]
    token_mean: Mapped[float]
    token_std: Mapped[float]
    error: Mapped[float]
    health: Mapped[dict[str, float]] = mapped_column(JSON)


class Compared(Table):
    """A photo that took both paths."""

    __tablename__ = "comparisons"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    change: Mapped[int] = mapped_column(ForeignKey("changes.id"), index=True)
    part: Mapped[str] = mapped_column(String(64))
    today: Mapped[str] = mapped_column(String(200))
    tokens: Mapped[str] = mapped_column(String(200))
    psnr: Mapped[float]
    eye_distance: Mapped[float]


class Window(Table):
    """A window of photos held against the reference."""

    __tablename__ = "windows"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(index=True)
    alarm: Mapped[bool]
    figures: Mapped[dict[str, float]] = mapped_column(JSON)  # 1 is the threshold
    said: Mapped[dict[str, list[str]]] = mapped_column(JSON)  # by language


class Change(Table):
    """The audit log of the roll-out."""

    __tablename__ = "changes"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    action: Mapped[str] = mapped_column(String(20))  # start | promote | hold | back | fall back
    before: Mapped[str] = mapped_column(String(20))
    stage: Mapped[str] = mapped_column(String(20))
    held: Mapped[bool]
    who: Mapped[str] = mapped_column(String(200))
    why: Mapped[str] = mapped_column(String(2000))
    evidence: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


@dataclass(frozen=True)
class Comparison:
    """Of one photo: verdicts of both paths, and how near the rebuilt one is."""

    part: str
    today: str
    tokens: str
    psnr: float
    eye_distance: float


class Store:
    """A database, brought to the present form of the tables when it is opened.

    ``url`` as SQLAlchemy writes it: ``sqlite:///softvq.db``, ``postgresql+psycopg://user@host/db``.
    Raises UserError if it cannot be opened.
    """

    def __init__(self, url: str = DEFAULT):
        try:
            self.engine: Engine = create_engine(url)
            if self.engine.dialect.name == "sqlite":
                if self.engine.url.database in (None, "", ":memory:"):  # one for each thread
                    raise ArgumentError("a database in memory keeps nothing")
                event.listen(self.engine, "connect", _sqlite)
            _migrate(self.engine)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UserError(
                f"--store: {_line(error)}; give sqlite:///FILE, or another URL"
            ) from None
        except SQLAlchemyError as error:
            raise UserError(f"--store: cannot be opened ({_line(error)})") from None

    def add(self, rows: Sequence[Table]) -> None:
        """All rows or none."""
        with Session(self.engine) as session, session.begin():
            session.add_all(rows)

    # ---- the roll-out ----

    def changes(self) -> list[Change]:
        """The audit log, oldest first."""
        with Session(self.engine, expire_on_commit=False) as session:
            return list(session.scalars(select(Change).order_by(Change.id)))

    def last_change(self) -> Change | None:
        with Session(self.engine, expire_on_commit=False) as session:
            return session.scalars(select(Change).order_by(Change.id.desc()).limit(1)).first()

    def comparisons(self, since: int, most: int) -> list[Comparison]:
        """The latest ``most`` of those made since change number ``since``."""
        query = (
            select(Compared)
            .where(Compared.change >= since)
            .order_by(Compared.id.desc())
            .limit(most)
        )
        with Session(self.engine) as session:
            return [
                Comparison(row.part, row.today, row.tokens, row.psnr, row.eye_distance)
                for row in session.scalars(query)
            ]

    # ---- drift ----

    def windows(self, most: int = 200) -> list[Window]:
        """The latest, oldest first."""
        query = select(Window).order_by(Window.id.desc()).limit(most)
        with Session(self.engine, expire_on_commit=False) as session:
            return list(session.scalars(query))[::-1]

    def forget(self, days: float) -> int:
        """Delete what is older, the audit log but; returns how many rows."""
        before, gone = time.time() - days * 86400, 0
        with Session(self.engine) as session, session.begin():
            for table in (Seen, Compared, Window):
                done = session.execute(delete(table).where(table.at < before))
                gone += done.rowcount if isinstance(done, CursorResult) else 0
        return gone

    def close(self) -> None:
        self.engine.dispose()


def _sqlite(connection: Any, _: Any) -> None:
    """Readers and a writer beside each other, in several processes."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("softvq") / "serve" / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
