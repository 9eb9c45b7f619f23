"""The application speaks to its own browser only, and its page to nobody else."""

import pytest
from fastapi.testclient import TestClient

from semipermeable.studio.evaluating import REPORT

HERE = "http://127.0.0.1:7860"


@pytest.fixture
def client(app):
    return TestClient(app, base_url=HERE)


def test_the_page_may_load_nothing_from_elsewhere(client):
    answer = client.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example"])
def test_another_name_for_this_machine_is_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_another_sites_page_is_refused(client, origin):
    answer = client.post("/gradio_api/queue/join", json={}, headers={"origin": origin})
    assert (answer.status_code, answer.text) == (403, "the studio answers to its own page only\n")
    assert client.get("/config", headers={"origin": HERE}).status_code == 200


def test_no_file_outside_the_work_folder_is_served(client, desk):
    (desk.work.root / "secret.txt").write_text("x")
    for path in ("/etc/passwd", str(desk.work.root / "secret.txt"), str(desk.work.root / "exports/../desk.json")):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_the_report_runs_in_a_box_of_its_own(client, desk):
    assert client.get("/report").status_code == 404
    folder = desk.work.place("results", "one")
    folder.mkdir()
    (folder / REPORT).write_text("<html>the report</html>")
    desk.remember(results="one")
    answer = client.get("/report")
    assert "the report" in answer.text
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")


def test_no_function_of_the_page_is_offered_as_an_api(client):
    described = client.get("/gradio_api/info").json()
    assert described["named_endpoints"] == {}
    assert described["unnamed_endpoints"] == {}
