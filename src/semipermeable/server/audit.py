"""The record of every picture: who, under which policy, with which membranes, and why each one did or did not act.

Records are only ever added. What deletes them is one operation: everything of one tenant, which leaves a line that says
how many and when. On SQLite and PostgreSQL a trigger refuses updates; on another database take the right away from the
server's user.

A record is committed before its picture is handed out, and all pictures of a request in one transaction: there is no
picture without a record. A record without a delivered picture is possible (the client left, or the server was killed in
between).
"""

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, SQLAlchemyError

from semipermeable.errors import AuditError
from semipermeable.membrane import Json

__all__ = ["AuditLog", "Record"]

_metadata = MetaData()
_ID = BigInteger().with_variant(Integer(), "sqlite")
_records = Table(
    "audit",
    _metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("image", String(32), nullable=False, unique=True),
    Column("request", String(32), nullable=False, index=True),
    Column("at", String(32), nullable=False, index=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("user", Text, nullable=True),
    Column("policy", String(64), nullable=False),
    Column("policy_version", String(80), nullable=False),
    Column("state", Integer, nullable=False),
    Column("prompt", Text, nullable=False),
    Column("negative", Text, nullable=False),
    Column("prompts_are", String(8), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("guidance", Float, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_hash", String(64), nullable=False),
    Column("membranes", JSON, nullable=False),
    Column("missing", JSON, nullable=False),
    Column("picture_hash", String(64), nullable=False),
    sqlite_autoincrement=True,
)
_deletions = Table(
    "audit_deletion",
    _metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("records", Integer, nullable=False),
)
_secrets = Table("audit_secret", _metadata, Column("name", String(16), primary_key=True), Column("value", String(64)))
event.listen(
    _records,
    "after_create",
    DDL(
        "CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
    ).execute_if(dialect="sqlite"),
)
_APPEND_ONLY = """CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"""
_ON_UPDATE = "CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit EXECUTE FUNCTION audit_is_append_only()"
for statement in (_APPEND_ONLY, _ON_UPDATE):
    event.listen(_records, "after_create", DDL(statement).execute_if(dialect="postgresql"))
_ATTEMPTS = 3
_PROBE_SECONDS = 2.0
_HASHED = ("prompt", "negative", "user")


@dataclass(frozen=True, slots=True)
class Record:
    """One picture.

    Args:
        image: id of the picture, 32 hex digits.
        request: id of the request, the same for its pictures.
        tenant: name of the tenant.
        user: what the client said of its own user, or None.
        policy: name of the policy.
        policy_version: see `State.version_of`.
        state: number of the state since the server's start.
        prompt: the prompt.
        negative: the negative prompt.
        seed: of the noise.
        steps: denoising steps.
        guidance: classifier-free guidance.
        width: in pixels.
        height: in pixels.
        model: what was drawn with, as it was named.
        model_hash: SHA-256 of the denoiser's weights.
        membranes: one object per membrane: concept, sha256, source, rule, strength, gamma, reason.
        missing: what an open policy was drawn without.
        picture_hash: SHA-256 of the bytes handed out.
    """

    image: str
    request: str
    tenant: str
    user: str | None
    policy: str
    policy_version: str
    state: int
    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    width: int
    height: int
    model: str
    model_hash: str
    membranes: tuple[Mapping[str, Json], ...]
    missing: tuple[str, ...]
    picture_hash: str


class AuditLog:
    """Records in a database; safe for several threads, and for several servers on one database.

    Args:
        url: an SQLAlchemy URL.
        prompts: "text" keeps prompts and users as they are, "hash" their HMAC-SHA256 under a key of this database.

    Raises:
        AuditError: if the database cannot be opened.
    """

    def __init__(self, url: str, prompts: Literal["text", "hash"] = "text") -> None:
        self._prompts = prompts
        self._lock = threading.Lock()
        self._checked, self._trouble = -math.inf, ""
        try:
            self._engine = _engine(url)
            self._key = _prepared(self._engine)
        except (SQLAlchemyError, ArgumentError, NoSuchModuleError, ImportError, OSError) as error:
            raise AuditError(f"the audit database cannot be opened ({_short(error)}); check audit.url") from error

    def write(self, records: Sequence[Record]) -> None:
        """Add records, all of them or none, and wait until they are on disk.

        Raises:
            AuditError: if they cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        rows = [self._row(record, now) for record in records]
        try:
            # One writer at a time: SQLite has one anyway, and threads that wait here do not run into its time limit.
            with self._lock, self._engine.begin() as connection:
                connection.execute(insert(_records), rows)
        except SQLAlchemyError as error:
            with self._lock:
                self._checked = -math.inf  # what was found before no longer holds
            raise AuditError(f"the record of a picture cannot be written ({_short(error)})") from error

    def read(self, *, tenant: str | None = None, after: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """Return records, oldest first.

        Args:
            tenant: only this tenant's; None is all.
            after: only those with a larger `id`.
            limit: how many at most.

        Raises:
            AuditError: if they cannot be read.
        """
        query = select(_records).where(_records.c.id > after).order_by(_records.c.id).limit(limit)
        if tenant is not None:
            query = query.where(_records.c.tenant == tenant)
        try:
            with self._engine.connect() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]
        except SQLAlchemyError as error:
            raise AuditError(f"the audit log cannot be read ({_short(error)})") from error

    def deletions(self) -> list[dict[str, Any]]:
        """Return what was deleted: time, tenant, number of records."""
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(select(_deletions).order_by(_deletions.c.id)).mappings()]

    def delete_tenant(self, tenant: str) -> int:
        """Delete every record of a tenant and note that it was done; returns how many there were.

        Raises:
            AuditError: if they cannot be deleted, or are deleted and their bytes cannot be wiped yet.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        try:
            with self._lock, self._engine.begin() as connection:
                gone = connection.execute(delete(_records).where(_records.c.tenant == tenant)).rowcount
                connection.execute(insert(_deletions), [{"at": now, "tenant": tenant, "records": gone}])
            wiped = self._empty_write_ahead_log()
        except SQLAlchemyError as error:
            raise AuditError(f"the records of {tenant!r} cannot be deleted ({_short(error)})") from error
        if not wiped:
            raise AuditError(
                f"{gone} records of {tenant!r} are deleted, but their texts are still in the database's files: another "
                "connection, e.g. of a backup or a report, reads an older state. End it, then delete once more"
            )
        return gone

    def _empty_write_ahead_log(self) -> bool:
        """Let SQLite forget old pages: deleted texts would stay readable in its write-ahead log.

        Returns:
            Whether it did; it cannot as long as somebody reads from them.
        """
        if self._engine.dialect.name != "sqlite":
            return True
        with self._engine.connect() as connection:
            busy, _, _ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        return not busy

    def check(self) -> None:
        """Find out whether the database takes a write and the records are there.

        Asked again within two seconds the answer is the same, unless a record could not be written meanwhile.

        Raises:
            AuditError: if it does not.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._checked >= _PROBE_SECONDS:
                self._checked, self._trouble = now, self._probe()
            if self._trouble:
                raise AuditError(f"the audit database takes no records ({self._trouble})")

    def _probe(self) -> str:
        """Look for the records, write one row that means nothing and take it back; returns what went wrong, or ""."""
        # A name of its own: another server on this database may probe at the same time.
        name = secrets.token_hex(8)
        try:
            with self._engine.begin() as connection:
                connection.execute(select(_records).limit(1))
                connection.execute(insert(_secrets), [{"name": name, "value": "probe"}])
                connection.execute(delete(_secrets).where(_secrets.c.name == name))
        except SQLAlchemyError as error:
            return _short(error)
        return ""

    def count(self) -> int:
        """Return the number of records.

        Raises:
            AuditError: if the database does not answer.
        """
        try:
            with self._engine.connect() as connection:
                return int(connection.execute(select(func.count()).select_from(_records)).scalar_one())
        except SQLAlchemyError as error:
            raise AuditError(f"the audit log cannot be read ({_short(error)})") from error

    def hashed(self, text: str) -> str:
        """Return a text as this log stores it under `prompts="hash"`, to look for a known prompt."""
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _row(self, record: Record, now: str) -> dict[str, Any]:
        row = {field.name: getattr(record, field.name) for field in fields(record)}
        if self._prompts == "hash":
            row |= {name: None if row[name] is None else self.hashed(row[name]) for name in _HASHED}
        membranes = [dict(one) for one in record.membranes]
        return row | {
            "at": now,
            "prompts_are": self._prompts,
            "membranes": membranes,
            "missing": list(record.missing),
        }


def _engine(url: str) -> Engine:
    # Without their parameters: errors that hold a prompt must not reach a log with their traceback.
    engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def durable(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
            cursor = connection.cursor()
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "secure_delete = ON"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


def _prepared(engine: Engine) -> bytes:
    """Create what is not there yet and return this database's key for hashes.

    Two servers may start at once on an empty database; the one that comes second finds what the first made.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _metadata.create_all(engine)
            with engine.begin() as connection:
                return _secret(connection)
        except DatabaseError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(0.1 * attempt)
    raise AssertionError("unreachable")


def _secret(connection: Connection) -> bytes:
    """Return this database's key for hashes, made on first use."""
    found = connection.execute(select(_secrets.c.value).where(_secrets.c.name == "hash")).scalar_one_or_none()
    if found is None:
        found = secrets.token_hex(32)
        connection.execute(insert(_secrets), [{"name": "hash", "value": found}])
    return bytes.fromhex(found)


def _short(error: BaseException) -> str:
    """Return the driver's own words, without SQL, which holds prompts, and URL, which may hold a password."""
    origin = getattr(error, "orig", None) or error
    text = str(origin).strip() or type(origin).__name__
    if isinstance(error, ArgumentError):
        return "the URL is not one of SQLAlchemy's"
    return text.splitlines()[0][:200]
