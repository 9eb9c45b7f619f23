"""Clients and machines that misbehave: slow, huge, gone, too many; no memory, no disk, no mercy (kill -9)."""

import copy
import json
import socket
import sqlite3
import ssl
import subprocess
import threading
import time

import httpx2
import pytest
import torch
from sqlalchemy import event

from semipermeable.errors import RefusedError
from semipermeable.server.config import LimitsTable
from semipermeable.server.painter import Painter
from semipermeable.server.service import Service

TEXT = "an icon of a cat"


def limited(config, **limits):
    return config.model_copy(update={"limits": LimitsTable(**limits)})


def header(keys, name="acme"):
    return {"authorization": f"Bearer {getattr(keys, name).key}"}


def post(address, keys, name="acme", timeout=60, **fields):
    body = {"prompt": TEXT, "seed": 1} | fields
    return httpx2.post(f"{address}/v1/images/generations", headers=header(keys, name), json=body, timeout=timeout)


def connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def closed_after(connection):
    """Seconds until the server closes the connection, and what it sent before."""
    start, found = time.monotonic(), b""
    while part := connection.recv(4096):
        found += part
    return time.monotonic() - start, found


@pytest.fixture
def held(service):
    """A service whose worker takes nothing from the queue until the event is set."""
    gate = threading.Event()
    take = service.queue.take
    service.queue.take = lambda most, timeout: take(most, timeout) if gate.wait(0.05) else []
    yield service, gate
    gate.set()


def wait_until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "], ids=["nothing", "half a head"])
def test_a_client_that_does_not_finish_its_head_is_cut_off(config, pipe, serve, sent):
    service = Service(limited(config, header_seconds=0.5), Painter(pipe))
    with serve(service) as address:
        connection = connect(address)
        connection.sendall(sent)
        seconds, _ = closed_after(connection)
        assert 0.2 < seconds < 5
        connection.close()


def test_a_slow_loris_loses_its_connections_while_others_are_served(config, pipe, serve):
    service = Service(limited(config, header_seconds=1.0), Painter(pipe))
    with serve(service) as address:
        lorises = [connect(address) for _ in range(50)]
        for loris in lorises:
            loris.sendall(b"POST /v1/images/generations HTTP/1.1\r\n")
        start = time.monotonic()
        alive = set(range(50))
        while alive and time.monotonic() - start < 20:
            assert httpx2.get(f"{address}/healthz").status_code == 200
            for number in list(alive):
                try:
                    lorises[number].sendall(b"x")
                except OSError:
                    alive.discard(number)
            time.sleep(0.2)
        assert not alive
        for loris in lorises:
            loris.close()


def test_a_second_slow_request_on_one_connection_is_cut_off_too(config, pipe, serve):
    service = Service(limited(config, header_seconds=0.5), Painter(pipe))
    with serve(service) as address:
        connection = connect(address)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(4096)
        connection.sendall(b"GET /hea")
        seconds, _ = closed_after(connection)
        assert seconds < 5
        connection.close()


def test_a_body_that_does_not_arrive_is_answered_408(config, pipe, serve):
    service = Service(limited(config, body_seconds=0.5), Painter(pipe))
    with serve(service) as address:
        connection = connect(address)
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        _, answer = closed_after(connection)
        assert b"408" in answer.splitlines()[0]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"
        connection.close()


def test_an_oversized_body_is_refused_from_its_length_alone(config, pipe, serve):
    with serve(Service(limited(config, body_bytes=1000), Painter(pipe))) as address:
        connection = connect(address)
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        _, answer = closed_after(connection)
        assert b"413" in answer.splitlines()[0]
        connection.close()


def test_an_oversized_body_without_a_length_is_refused_while_it_arrives(config, pipe, serve):
    with serve(Service(limited(config, body_bytes=1000), Painter(pipe))) as address:
        connection = connect(address)
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.sendall((b"200\r\n" + b"x" * 512 + b"\r\n") * 3)
        _, answer = closed_after(connection)
        assert b"413" in answer.splitlines()[0]
        connection.close()


def test_a_huge_head_is_refused(service, serve):
    with serve(service) as address:
        connection = connect(address)
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-big: " + b"x" * 20_000)
        _, answer = closed_after(connection)
        assert b"400" in answer.splitlines()[0]
        connection.close()


def test_more_connections_than_allowed_are_answered_503_and_room_is_made_when_they_close(config, pipe, serve):
    with serve(Service(limited(config, connections=5), Painter(pipe))) as address:
        idle = [connect(address) for _ in range(8)]
        one = httpx2.get(f"{address}/healthz")
        assert one.status_code == 503
        for connection in idle:
            connection.close()
        wait_until(lambda: httpx2.get(f"{address}/healthz").status_code == 200)


def test_too_many_waiting_is_429_with_retry_after_and_others_are_still_served(config, pipe, serve, keys):
    service = Service(limited(config, images=2, tenant_rows=2, queue_rows=4), Painter(pipe))
    gate = threading.Event()
    take = service.queue.take
    service.queue.take = lambda most, timeout: take(most, timeout) if gate.wait(0.05) else []
    with serve(service) as address:
        answers = []
        threads = [
            threading.Thread(target=lambda name=name: answers.append(post(address, keys, name, n=2)))
            for name in ("acme", "zoo")
        ]
        threads[0].start()
        wait_until(lambda: len(service.queue) == 2)
        refused = post(address, keys, "acme")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        threads[1].start()
        wait_until(lambda: len(service.queue) == 4)
        gate.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200]


def test_the_openai_client_waits_and_tries_again_by_itself(config, pipe, client_of, keys):
    service = Service(limited(config, images=1, tenant_rows=1, queue_rows=1), Painter(pipe))
    client = client_of(service)
    several = [client(keys.acme.key, max_retries=8) for _ in range(3)]
    answers = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(one.images.generate(model="emoji", prompt=TEXT)))
        for one in several
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 3


def test_a_client_that_leaves_is_not_drawn_for(held, serve, keys):
    service, gate = held
    with serve(service) as address:
        body = json.dumps({"prompt": TEXT}).encode()
        head = f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {keys.acme.key}\r\n"
        connection = connect(address)
        connection.sendall(
            head.encode() + f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        wait_until(lambda: len(service.queue) == 1)
        (job,) = service.queue._waiting["acme"]
        connection.close()
        wait_until(lambda: job.abandoned)
        gate.set()
        assert post(address, keys, "zoo").status_code == 200
        assert [row["tenant"] for row in service.audit.read()] == ["zoo"]


def test_a_call_in_progress_stops_when_its_only_client_leaves(config, pipe, serve, keys):
    from semipermeable.server.config import DrawingTable

    service = Service(config.model_copy(update={"drawing": DrawingTable(steps=900, max_steps=900)}), Painter(pipe))
    with serve(service) as address:
        with pytest.raises(httpx2.ReadTimeout):
            post(address, keys, timeout=2)
        start = time.monotonic()
        assert post(address, keys, "zoo", steps=1).status_code == 200
        assert time.monotonic() - start < 15
    assert service.audit.count() == 1


def test_a_picture_that_takes_too_long_is_504(config, pipe, serve, keys):
    from semipermeable.server.config import DrawingTable

    slow = limited(config, deadline_seconds=0.5).model_copy(update={"drawing": DrawingTable(steps=900, max_steps=900)})
    service = Service(slow, Painter(pipe))
    with serve(service) as address:
        answer = post(address, keys)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert service.audit.count() == 0


@pytest.fixture
def small_memory(pipe):
    """The denoiser runs out of memory with more than a number of rows; returns that number as a list to change."""
    most = [10**9]

    def refuse(_module, args, kwargs):
        rows = (args[0] if args else kwargs["sample"]).shape[0]
        if rows > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    handle = pipe.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    yield most
    handle.remove()


def test_out_of_memory_draws_the_batch_in_halves_and_changes_no_picture(small_memory, service, serve, keys):
    with serve(service) as address:
        whole = [one["b64_json"] for one in post(address, keys, n=4).json()["data"]]
        assert len(set(whole)) == 4
        small_memory[0] = 2
        halved = post(address, keys, n=4)
        assert halved.status_code == 200
        alone = [post(address, keys, seed=1 + j).json()["data"][0]["b64_json"] for j in range(4)]
        assert [one["b64_json"] for one in halved.json()["data"]] == alone


def test_out_of_memory_with_one_picture_is_503_and_the_server_goes_on(small_memory, service, serve, keys):
    with serve(service) as address:
        small_memory[0] = 0
        answer = post(address, keys, n=2)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "out_of_memory"
        small_memory[0] = 10**9
        assert post(address, keys).status_code == 200


def test_an_error_nobody_thought_of_is_500_without_details_and_the_server_goes_on(service, serve, keys, pipe):
    def fail(_module, _args, _kwargs):
        raise ZeroDivisionError("in secret.py")

    with serve(service) as address:
        handle = pipe.unet.register_forward_pre_hook(fail, with_kwargs=True)
        answer = post(address, keys)
        handle.remove()
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
        assert post(address, keys).status_code == 200


def test_a_membrane_that_does_not_act_means_503_and_no_picture(service, serve, keys, pipe):
    """A layer was replaced behind the attachment's back, as compiling or fusing does: the site never runs."""
    from semipermeable.sites import find_sites

    name, site = next(iter(find_sites(pipe.unet).items()))
    parent = pipe.unet.get_submodule(name.rpartition(".")[0])

    with serve(service) as address:
        assert post(address, keys).status_code == 200
        key = name.rpartition(".")[2]
        parent._modules[key] = copy.deepcopy(site.module)
        try:
            answer = post(address, keys, seed=2)
        finally:
            parent._modules[key] = site.module
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "membrane_unavailable"
    assert service.audit.count() == 1


def test_without_a_record_no_picture_leaves(service, serve, keys, tmp_path):
    with serve(service) as address:
        assert post(address, keys).status_code == 200
        assert httpx2.get(f"{address}/readyz").json()["ready"]
        blocker = sqlite3.connect(tmp_path / "audit.sqlite3", isolation_level=None)
        blocker.execute("ALTER TABLE audit RENAME TO elsewhere")
        answer = post(address, keys)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "audit_unavailable"
        assert "b64_json" not in answer.text
        standing = httpx2.get(f"{address}/readyz")
        assert standing.status_code == 503
        assert [problem["file"] for problem in standing.json()["problems"]] == ["audit"]
        blocker.execute("ALTER TABLE elsewhere RENAME TO audit")
        blocker.close()
        assert post(address, keys).status_code == 200


@pytest.fixture
def full_disk(service):
    """Let SQLite's file grow no further until the list is emptied: SQLite then says what a full disk makes it say."""
    room = [0]

    def bound(connection, *_):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages if room else 2**30}")

    event.listen(service.audit._engine, "checkout", bound)
    yield room
    event.remove(service.audit._engine, "checkout", bound)


def test_a_full_disk_means_503_without_a_picture_until_there_is_room(service, serve, keys, full_disk, caplog):
    with serve(service) as address:
        statuses = []
        # What is free inside the file's last pages is used up first.
        while not statuses or (statuses[-1] == 200 and len(statuses) < 60):
            answer = post(address, keys, n=4, steps=1, user="u" * 256)
            statuses.append(answer.status_code)
        assert statuses[-1] == 503
        assert answer.json()["error"]["code"] == "audit_unavailable"
        assert "b64_json" not in answer.text
        assert "pictures of 'acme' are not handed out" in caplog.text
        assert "database or disk is full" in caplog.text
        recorded = service.audit.count()
        assert recorded == 4 * statuses.count(200)
        full_disk.clear()
        assert post(address, keys, steps=1).status_code == 200
        assert service.audit.count() == recorded + 1


def test_tls(config, pipe, serve, keys, certificate):
    file, key = certificate
    listen = config.listen.model_copy(update={"certificate": file, "certificate_key": key})
    service = Service(config.model_copy(update={"listen": listen}).checked(), Painter(pipe))
    with serve(service) as address:
        assert address.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(file))
        with httpx2.Client(verify=trusted) as client:
            assert client.get(f"{address}/healthz").json() == {"status": "ok"}
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{address}/healthz")
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            httpx2.get(address.replace("https", "http") + "/healthz")


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1, signed by itself, made by OpenSSL's own program."""
    file, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-keyout", str(key), "-out", str(file), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *options.split(), *files], check=True, capture_output=True)
    return file, key


def test_stopping_finishes_what_is_drawn_and_refuses_the_rest(config, pipe, keys, serve):
    service = Service(limited(config, drain_seconds=30), Painter(pipe))
    answers = []
    with serve(service) as address:
        thread = threading.Thread(target=lambda: answers.append(post(address, keys, steps=4, n=2)))
        thread.start()
        wait_until(lambda: len(service.queue) or service.audit.count() or not thread.is_alive())
    thread.join(60)
    assert answers[0].status_code in (200, 503)
    assert service.worker.alive is False
    with pytest.raises(RefusedError, match="stopping"):
        service.queue.put(service.jobs_for(_request(), "acme"))


def _request():
    from semipermeable.server.schemas import ImageRequest

    return ImageRequest(prompt=TEXT)
