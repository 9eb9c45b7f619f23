"""Servers on the bundled model with few steps, policies, keys and random membranes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import httpx2
import pytest
import tomli_w

from semipermeable.files import save
from semipermeable.server.config import AuditTable, DrawingTable, KeyTable, ServerConfig
from semipermeable.server.keys import make_key

from helpers import random_membrane


class Keys(NamedTuple):
    """Keys of tenants and of the administrator, and the file that stores them."""

    acme: object
    zoo: object
    admin: object


@pytest.fixture(scope="session")
def keys():
    """One key each; scrypt takes its time, so they are made once."""
    return Keys(make_key(), make_key(), make_key())


@pytest.fixture
def membrane_of(pipe):
    """A random membrane named after a concept; large enough to change every row it acts on."""
    return lambda name, seed=0, scale=0.06, **extra: random_membrane(pipe.unet, name, scale=scale, seed=seed, **extra)


@pytest.fixture
def folder(tmp_path, membrane_of):
    """A folder with membranes of "cat" and "dog"."""
    place = tmp_path / "membranes"
    place.mkdir()
    save(membrane_of("cat", 1), place / "cat.safetensors")
    save(membrane_of("dog", 2), place / "dog.safetensors")
    return place


def policy_text(keys, *, cats=("cat",), zoo=(), **cats_extra):
    """TOML: tenant "acme" under policy "cats", tenant "zoo" under policy "free"."""
    return tomli_w.dumps(
        {
            "policy": [
                {"name": "cats", "membranes": list(cats), **cats_extra},
                {"name": "free", "membranes": list(zoo)},
            ],
            "tenant": [
                {"name": "acme", "policy": "cats", "keys": [{"id": keys.acme.id, "hash": keys.acme.hash}]},
                {"name": "zoo", "policy": "free", "keys": [{"id": keys.zoo.id, "hash": keys.zoo.hash}]},
            ],
        }
    )


@pytest.fixture
def policies(tmp_path, keys):
    """A policy file; call it to write other content."""
    path = tmp_path / "policies.toml"

    def write(**changes):
        path.write_text(policy_text(keys, **changes))
        return path

    write()
    return write


@pytest.fixture
def config(tmp_path, folder, policies, keys):
    """A configuration with two steps a picture."""
    return ServerConfig(
        membranes=folder,
        policies=policies(),
        reload_seconds=0.1,
        explain=True,
        admin_keys=(KeyTable(id=keys.admin.id, hash=keys.admin.hash),),
        audit=AuditTable(url=f"sqlite:///{tmp_path / 'audit.sqlite3'}"),
        drawing=DrawingTable(steps=2, max_steps=4),
    )


@pytest.fixture
def service(config, pipe):
    """A service whose worker is not running yet."""
    from semipermeable.server.painter import Painter
    from semipermeable.server.service import Service

    made = Service(config, Painter(pipe))
    yield made
    if made.worker.alive:
        made.close()


@contextlib.contextmanager
def running(service, config=None):
    """A server under uvicorn on loopback, in a thread; gives its address."""
    from semipermeable.server.app import create_app
    from semipermeable.server.running import make_server

    settings = config or service.config
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = settings.model_copy(update={"listen": settings.listen.model_copy(update={"port": port})})
    server = make_server(create_app(service), settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        scheme = "https" if settings.listen.certificate else "http"
        yield f"{scheme}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def serve():
    """See `running`."""
    return running


@pytest.fixture
def client_of(serve):
    """Run a service and give a function from key to the real OpenAI client of it."""
    from openai import OpenAI

    with contextlib.ExitStack() as stack:

        def start(service):
            address = stack.enter_context(serve(service))

            def client(key, **options):
                return stack.enter_context(
                    OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=options.pop("max_retries", 0), **options)
                )

            client.address = address
            return client

        yield start


@pytest.fixture
def files(tmp_path, folder, policies, keys):
    """A configuration on disk."""

    def write(**changes):
        content = {
            "membranes": "membranes",
            "policies": "policies.toml",
            "explain": True,
            "admin_keys": [{"id": keys.admin.id, "hash": keys.admin.hash}],
            "drawing": {"steps": 1, "max_steps": 4},
        }
        (tmp_path / "server.toml").write_text(tomli_w.dumps(content | changes))
        return tmp_path / "server.toml"

    write()
    return write


class Process:
    """`spm serve` in a process of its own."""

    def __init__(self, *arguments, cwd):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "semipermeable", "serve", "--port", str(self.port), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.log = (cwd / "log.txt").open("ab")
        self.popen = subprocess.Popen(command, cwd=cwd, stdout=self.log, stderr=subprocess.STDOUT, env=environment)
        self.address = f"http://127.0.0.1:{self.port}"
        self.text = lambda: (cwd / "log.txt").read_text()
        try:
            self._wait(time.monotonic() + 500)
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def _wait(self, deadline):
        while True:
            assert self.popen.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            try:
                if httpx2.get(f"{self.address}/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.1)

    def post(self, key, **fields):
        body = {"prompt": "an icon of a cat", "seed": 1} | fields
        return httpx2.post(
            f"{self.address}/v1/images/generations", headers={"authorization": f"Bearer {key}"}, json=body, timeout=120
        )

    def end(self, number=signal.SIGTERM):
        """Send a signal and return the exit code."""
        self.popen.send_signal(number)
        code = self.popen.wait(60)
        self.log.close()
        return code


@pytest.fixture
def spm_serve():
    """See `Process`."""
    return Process
