"""Records: only added, whole transactions, deleted per tenant, and readable after a kill."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from semipermeable.errors import AuditError
from semipermeable.server.audit import AuditLog
from server.records import ONE, record


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'audit.sqlite3'}"


@pytest.fixture
def log(url):
    made = AuditLog(url)
    yield made
    made.close()


def test_a_record_comes_back_as_it_was(log, url):
    log.write([ONE])
    log.close()
    (row,) = AuditLog(url).read()
    for field in ("tenant", "user", "prompt", "negative", "seed", "policy_version", "model_hash", "picture_hash"):
        assert row[field] == getattr(ONE, field)
    assert row["membranes"] == [dict(ONE.membranes[0])]
    assert row["missing"] == ["owl"]
    assert row["at"].endswith("+00:00")


def test_pages(log):
    log.write([record(n, tenant="acme" if n % 2 else "zoo") for n in range(10)])
    first = log.read(limit=4)
    rest = log.read(after=first[-1]["id"], limit=100)
    assert [row["image"] for row in first + rest] == [record(n).image for n in range(10)]
    assert {row["tenant"] for row in log.read(tenant="zoo")} == {"zoo"}
    assert len(log.read(tenant="zoo")) == 5


def test_the_same_picture_cannot_be_recorded_twice_and_a_failed_write_leaves_nothing(log):
    log.write([record(1)])
    with pytest.raises(AuditError, match="cannot be written"):
        log.write([record(2), record(1)])
    assert log.count() == 1


def test_errors_hold_neither_prompts_nor_sql(log):
    log.write([record(1, prompt="a secret wish")])
    with pytest.raises(AuditError) as caught:
        log.write([record(1, prompt="a secret wish")])
    assert "secret wish" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_records_cannot_be_changed(log):
    log.write([ONE])
    with pytest.raises(IntegrityError, match="append-only"), log._engine.begin() as connection:
        connection.execute(text("UPDATE audit SET prompt = 'nothing'"))
    assert log.read()[0]["prompt"] == ONE.prompt


def test_deleting_a_tenant_leaves_the_others_and_a_note(log, tmp_path):
    log.write([record(n, tenant="acme", prompt="erase me entirely") for n in range(50)])
    log.write([record(99, tenant="zoo", prompt="keep me")])
    assert log.delete_tenant("acme") == 50
    assert [row["tenant"] for row in log.read()] == ["zoo"]
    assert [(note["tenant"], note["records"]) for note in log.deletions()] == [("acme", 50)]
    left = b"".join(path.read_bytes() for path in tmp_path.glob("audit.sqlite3*"))
    assert b"keep me" in left
    assert b"erase me entirely" not in left


def test_deleting_while_somebody_reads_says_that_the_texts_are_still_there(log, tmp_path):
    @event.listens_for(log._engine, "checkout")
    def hurry(connection, *_):
        connection.execute("PRAGMA busy_timeout = 100")

    def left():
        return b"erase me entirely" in b"".join(path.read_bytes() for path in tmp_path.glob("audit.sqlite3*"))

    log.write([record(1, prompt="erase me entirely")])
    reader = sqlite3.connect(tmp_path / "audit.sqlite3", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM audit").fetchone()
    with pytest.raises(AuditError, match=r"1 records of 'acme' are deleted, but .* then delete once more"):
        log.delete_tenant("acme")
    assert log.count() == 0
    assert left()
    reader.close()
    assert log.delete_tenant("acme") == 0
    assert not left()
    assert [note["records"] for note in log.deletions()] == [1, 0]


def test_ids_are_never_used_again(log):
    log.write([record(1)])
    last = log.read()[0]["id"]
    log.delete_tenant("acme")
    log.write([record(2)])
    assert log.read()[0]["id"] > last


def test_hashed_prompts_can_be_looked_for_and_not_read(url, tmp_path):
    log = AuditLog(url, "hash")
    log.write([ONE])
    (row,) = log.read()
    assert row["prompt"] == log.hashed(ONE.prompt) == AuditLog(url).hashed(ONE.prompt)
    assert row["user"] == log.hashed("u-1")
    assert row["prompts_are"] == "hash"
    log.close()
    assert ONE.prompt.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("audit.sqlite3*"))
    other = AuditLog(f"sqlite:///{tmp_path / 'other.sqlite3'}", "hash")
    assert other.hashed(ONE.prompt) != row["prompt"]


def test_many_threads_and_two_logs_on_one_file(url):
    logs = [AuditLog(url), AuditLog(url)]

    def write(number):
        for index in range(20):
            logs[number % 2].write([record(number * 100 + index)])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert logs[0].count() == 160


@pytest.mark.parametrize("url", ["nonsense", "nodialect://x", "sqlite:////no/such/folder/audit.sqlite3"])
def test_a_database_that_cannot_be_opened_is_one_sentence(url):
    with pytest.raises(AuditError, match=r"cannot be opened .*; check audit\.url"):
        AuditLog(url)


def test_a_password_in_the_url_is_not_shown():
    with pytest.raises(AuditError) as caught:
        AuditLog("postgresql+nodriver://me:hunter2@localhost/x")
    assert "hunter2" not in str(caught.value)


def test_a_database_that_went_away_is_reported_and_does_not_lose_what_comes_after(log, tmp_path):
    log.write([record(1)])
    log.check()
    blocker = sqlite3.connect(tmp_path / "audit.sqlite3", isolation_level=None)
    blocker.execute("DROP TABLE audit")
    with pytest.raises(AuditError, match="no such table"):
        log.write([record(2)])
    with pytest.raises(AuditError, match="no such table"):
        log.read()


WRITER = """
    import sys
    from dataclasses import replace
    from tests_record import ONE
    from semipermeable.server.audit import AuditLog

    log = AuditLog(sys.argv[1])
    number = 0
    print("ready", flush=True)
    while True:
        log.write([replace(ONE, image=f"{number:028x}{part:04x}", request=str(number)) for part in range(4)])
        print(number, flush=True)
        number += 1
"""


def test_after_kill_9_in_mid_write_every_request_is_there_whole_and_none_that_was_confirmed_is_lost(url, tmp_path):
    (tmp_path / "tests_record.py").write_text(f"from semipermeable.server.audit import Record\nONE = {ONE!r}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for attempt in range(2):
        (tmp_path / "audit.sqlite3").unlink(missing_ok=True)
        program = [sys.executable, "-c", textwrap.dedent(WRITER), url]
        process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        confirmed = -1
        for _ in range(20 + 7 * attempt):
            confirmed = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        confirmed = max([confirmed, *(int(line) for line in rest)])
        process.wait()
        process.stdout.close()
        log = AuditLog(url)
        rows = log.read(limit=100_000)
        per_request = {}
        for row in rows:
            per_request[int(row["request"])] = per_request.get(int(row["request"]), 0) + 1
        assert set(per_request.values()) == {4}
        assert set(range(confirmed + 1)) <= set(per_request)
        log.write([record(2**100)])
        log.close()
        assert sqlite3.connect(tmp_path / "audit.sqlite3").execute("PRAGMA integrity_check").fetchone() == ("ok",)


DISK_FULL = """
    import resource, sys
    from dataclasses import replace
    from tests_record import ONE
    from semipermeable.errors import AuditError
    from semipermeable.server.audit import AuditLog

    log = AuditLog(sys.argv[1])
    log.write([ONE])
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    written = 1
    try:
        for number in range(10_000):
            log.write([replace(ONE, image=f"{number + 1:032x}", prompt="x" * 1000)])
            written += 1
    except AuditError as error:
        print(written, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.write([replace(ONE, image="f" * 32)])
    print(log.count())
"""


def test_a_full_disk_is_an_error_and_nothing_is_half_written(url, tmp_path):
    """The file size limit of the process stands in for a full disk: writes beyond it fail in the same way."""
    (tmp_path / "tests_record.py").write_text(f"from semipermeable.server.audit import Record\nONE = {ONE!r}\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    program = [sys.executable, "-c", textwrap.dedent(DISK_FULL), url]
    found = subprocess.run(program, capture_output=True, text=True, env=environment, check=True, timeout=120)
    first, second = found.stdout.splitlines()
    written, _, message = first.partition(" ")
    assert "the record of a picture cannot be written" in message
    assert int(second) == int(written) + 1
