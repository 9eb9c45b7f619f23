"""The API as real clients see it: OpenAI's Python client, keys, policies, records, refusals."""

import base64
import io
import json
import logging
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import torch
from PIL import Image

import semipermeable as spm
from semipermeable.files import save

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
TEXT = "an icon of a cat"


def picture(answer, index=0):
    return Image.open(io.BytesIO(base64.b64decode(answer.data[index].b64_json)))


def difference(a, b):
    return int(np.abs(np.asarray(a.convert("RGB"), np.int16) - np.asarray(b.convert("RGB"), np.int16)).max())


def draw(client, prompt=TEXT, **options):
    extra = {"seed": 3} | options.pop("extra_body", {})
    return client.images.generate(model="emoji", prompt=prompt, extra_body=extra, **options)


@pytest.fixture
def clients(service, client_of, keys):
    """A function from "acme", "zoo", "admin" to an OpenAI client, on one running server."""
    client = client_of(service)
    made = {name: client(getattr(keys, name).key) for name in ("acme", "zoo", "admin")}
    return made | {"address": client.address, "nobody": client("spm_000000000000_" + "A" * 43)}


def header(keys, name):
    return {"authorization": f"Bearer {getattr(keys, name).key}"}


def test_the_openai_client_draws_what_attach_draws(clients, service, pipe, folder):
    answer = draw(clients["acme"], n=2, size="64x64", response_format="b64_json")
    assert [one.seed for one in answer.data] == [3, 4]
    assert answer.policy.startswith("cats@")
    service.painter.close()
    with spm.attach(pipe, folder / "cat.safetensors"):
        wanted = pipe(
            [TEXT] * 2,
            num_inference_steps=2,
            guidance_scale=4.0,
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        ).images
    for index, one in enumerate(wanted):
        assert picture(answer, index).size == (64, 64)
        assert difference(picture(answer, index), one) <= 2


def test_what_the_page_shows_to_clients_works(clients, keys, tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", clients["address"])
    monkeypatch.setenv("SPM_KEY", keys.acme.key)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    exec(program, {})
    with Image.open(tmp_path / "dog.png") as drawn:
        assert drawn.size == (64, 64)
    (command,) = [block for block in re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M) if "curl" in block]
    if shutil.which("curl"):
        found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
        assert [one["seed"] for one in json.loads(found.stdout)["data"]] == [7, 8]


def test_two_tenants_with_the_same_prompt_at_the_same_time_get_their_own_policies(clients):
    alone = {name: picture(draw(clients[name])) for name in ("acme", "zoo")}
    assert difference(alone["acme"], alone["zoo"]) > 20
    found = {"acme": [], "zoo": []}
    threads = [
        threading.Thread(target=lambda name=name: found[name].append(draw(clients[name])))
        for name in ("acme", "zoo") * 8
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for name, answers in found.items():
        assert len(answers) == 8
        assert all(difference(picture(answer), alone[name]) <= 2 for answer in answers)
        wanted = {"acme": [("cat", 1.0)], "zoo": []}[name]
        assert all([(m["concept"], m["gamma"]) for m in a.data[0].membranes] == wanted for a in answers)


def test_rows_of_two_tenants_really_share_a_call(clients, service, keys):
    service.painter.batch_rows = service.worker._most = 8
    entered, gate = threading.Event(), threading.Event()
    take = service.queue.take

    def held_take(most, timeout):
        entered.set()
        return take(most, timeout) if gate.wait(20) else []

    service.queue.take = held_take
    assert entered.wait(20)  # the call that ran meanwhile has ended, and cannot take the first row alone
    threads = [threading.Thread(target=draw, args=(clients[name],)) for name in ("acme", "zoo", "acme")]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(service.queue) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    gate.set()
    for thread in threads:
        thread.join(60)
    text = httpx2.get(f"{clients['address']}/metrics", headers=header(keys, "admin")).text
    assert 'spm_batch_rows_bucket{le="2.0"} 0.0' in text
    assert 'spm_batch_rows_bucket{le="4.0"} 1.0' in text


def test_a_request_adds_an_erasure_and_cannot_take_one_away(clients):
    def acting(answer):
        return [(one["concept"], one["source"]) for one in answer.data[0].membranes]

    dog = "an icon of a dog"
    assert acting(draw(clients["acme"], dog)) == [("cat", "policy")]
    added = draw(clients["acme"], dog, extra_body={"erase": ["dog"]})
    assert acting(added) == [("cat", "policy"), ("dog", "request")]
    assert difference(picture(added), picture(draw(clients["acme"], dog))) > 20
    for attempt in ({"erase": []}, {"erase": ["cat"]}):
        assert acting(draw(clients["acme"], extra_body=attempt)) == [("cat", "policy")]
    for attempt in ({"policy": "free"}, {"permeability": 0}, {"strength": 0}, {"tenant": "zoo"}, {"keep": ["cat"]}):
        with pytest.raises(openai.BadRequestError, match="Extra inputs are not permitted"):
            draw(clients["acme"], extra_body=attempt)


def test_every_picture_is_on_record_with_its_policy(clients, keys):
    answer = draw(clients["acme"], n=2, user="u-7")
    draw(clients["zoo"])
    url = f"{clients['address']}/v1/audit"
    rows = httpx2.get(url, headers=header(keys, "acme")).json()["data"]
    assert [row["image"] for row in rows] == [one.id for one in answer.data]
    first = rows[0]
    assert (first["tenant"], first["user"], first["prompt"], first["seed"]) == ("acme", "u-7", TEXT, 3)
    assert first["policy_version"] == answer.policy
    assert first["membranes"][0]["concept"] == "cat"
    assert first["membranes"][0]["gamma"] == 1.0
    assert "cat" in first["membranes"][0]["reason"]
    assert len(first["model_hash"]) == len(first["membranes"][0]["sha256"]) == 64
    assert {row["tenant"] for row in httpx2.get(url, headers=header(keys, "admin")).json()["data"]} == {"acme", "zoo"}
    page = httpx2.get(f"{url}?limit=1", headers=header(keys, "acme")).json()
    assert page["next"] == page["data"][0]["id"]
    assert httpx2.get(f"{url}?tenant=zoo", headers=header(keys, "acme")).status_code == 403


def test_a_tenants_records_can_be_deleted_by_the_administrator_alone(clients, keys):
    draw(clients["acme"])
    draw(clients["zoo"])
    url = f"{clients['address']}/v1/audit"
    assert httpx2.delete(f"{url}?tenant=acme", headers=header(keys, "acme")).status_code == 403
    answer = httpx2.delete(f"{url}?tenant=acme", headers=header(keys, "admin"))
    assert answer.json() == {"tenant": "acme", "deleted": 1}
    assert [r["tenant"] for r in httpx2.get(url, headers=header(keys, "admin")).json()["data"]] == ["zoo"]


def test_what_any_picture_of_a_request_was_drawn_without_is_said(
    service, client_of, keys, policies, folder, membrane_of
):
    policies(cats=["cat", "owl"], fail="open")
    service.keeper.refresh()
    service.worker._most = 1
    draw_rows, owl = service.painter.draw, membrane_of("owl")

    def then_mend(*arguments):
        drawn = draw_rows(*arguments)
        save(owl, folder / "owl.safetensors")
        service.keeper.refresh()
        return drawn

    service.painter.draw = then_mend
    answer = draw(client_of(service)(keys.acme.key), n=2)
    assert answer.missing == ["owl"]
    rows = service.audit.read()
    assert [row["missing"] for row in rows] == [["owl"], []]
    assert answer.policy == rows[1]["policy_version"] != rows[0]["policy_version"]


def test_an_error_nobody_thought_of_is_counted_and_has_the_headers_of_every_answer(clients, service, keys, caplog):
    service.jobs_for = lambda *_: 1 / 0
    url = f"{clients['address']}/v1/images/generations"
    answer = httpx2.post(url, headers=header(keys, "acme"), json={"prompt": TEXT})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert answer.headers["cache-control"] == "no-store"
    assert "ZeroDivisionError" in caplog.text
    text = httpx2.get(f"{clients['address']}/metrics", headers=header(keys, "admin")).text
    assert 'spm_requests_total{route="/v1/images/generations",status="500",tenant="acme"} 1.0' in text
    assert 'spm_refusals_total{code="internal"} 1.0' in text


def test_models_policies_and_membranes(clients, keys):
    assert [model.id for model in clients["acme"].models.list()] == ["emoji"]
    url = clients["address"]
    own = httpx2.get(f"{url}/v1/policies", headers=header(keys, "acme")).json()
    assert [(p["name"], p["membranes"], p["tenants"]) for p in own["data"]] == [("cats", ["cat"], ["acme"])]
    every = httpx2.get(f"{url}/v1/policies", headers=header(keys, "admin")).json()
    assert [p["name"] for p in every["data"]] == ["cats", "free"]
    shelf = httpx2.get(f"{url}/v1/membranes", headers=header(keys, "zoo")).json()["data"]
    assert [(m["concept"], m["file"]) for m in shelf] == [("cat", "cat.safetensors"), ("dog", "dog.safetensors")]


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"prompt": " "}, "prompt", "empty"),
        ({"prompt": "x" * 3000}, "prompt", "more than 2000 characters"),
        ({"n": 5}, "n", "may ask for 4"),
        ({"size": "63x64"}, "size", "served: 64x64"),
        ({"size": "big"}, "size", "match"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"extra_body": {"steps": 5}}, "steps", "allows 4"),
        ({"extra_body": {"steps": 0}}, "steps", "greater than or equal to 1"),
        ({"extra_body": {"guidance": 16}}, "guidance", "allows 15"),
        ({"extra_body": {"guidance": -1}}, "guidance", "greater than or equal to 1"),
        ({"extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
        ({"extra_body": {"seed": True}}, "seed", "valid integer"),
        ({"n": 2, "extra_body": {"seed": 2**63 - 1}}, "seed", "more than"),
        ({"extra_body": {"erase": ["dgo"]}}, "erase", "did you mean 'dog'"),
        ({"extra_body": {"erase": ["../../etc/passwd"]}}, "erase", "unknown membrane"),
        ({"extra_body": {"prompt": "a\0b"}}, "prompt", "NUL"),
    ],
)
def test_mistakes_are_answered_in_openais_shape(clients, options, param, words):
    with pytest.raises(openai.BadRequestError) as caught:
        draw(clients["acme"], **options)
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert body["type"] == "invalid_request_error"
    assert body["param"] == param
    assert words in body["message"]


def test_other_refusals_have_their_own_classes_in_the_client(clients, keys):
    with pytest.raises(openai.AuthenticationError, match="no valid key"):
        draw(clients["nobody"])
    with pytest.raises(openai.PermissionDeniedError, match="administers"):
        draw(clients["admin"])
    with pytest.raises(openai.NotFoundError, match="serves 'emoji'"):
        clients["acme"].images.generate(model="dall-e-3", prompt=TEXT)
    answer = httpx2.get(f"{clients['address']}/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    answer = httpx2.get(f"{clients['address']}/v1/images/generations")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    url, headers = f"{clients['address']}/v1/images/generations", header(keys, "acme")
    for body, code in ((b'{"prompt": "\\ud800"}', "invalid_value"), (b"{", "invalid_json"), (b"[]", "invalid_value")):
        answer = httpx2.post(url, headers=headers | {"content-type": "application/json"}, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert httpx2.post(url, headers=headers, content=b'{"prompt": "no content type"}').status_code == 400


@pytest.mark.parametrize("path", ["/v1/policies", "/v1/membranes", "/v1/audit", "/v1/models", "/metrics"])
def test_nothing_but_health_is_open(clients, path):
    answer = httpx2.get(f"{clients['address']}{path}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx2.get(f"{clients['address']}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_file_formats(clients, form):
    answer = draw(clients["acme"], output_format=form)
    assert picture(answer).format == form.upper()
    assert answer.output_format == form
    assert difference(picture(answer), picture(draw(clients["acme"]))) <= (60 if form == "jpeg" else 0)


def test_without_explain_no_gamma_leaves_the_server(config, pipe, client_of, keys):
    from semipermeable.server.painter import Painter
    from semipermeable.server.service import Service

    service = Service(config.model_copy(update={"explain": False}), Painter(pipe))
    answer = draw(client_of(service)(keys.acme.key))
    assert answer.data[0].membranes is None
    assert service.audit.read()[0]["membranes"][0]["gamma"] == 1.0


def wait_for_state(service, number):
    deadline = time.monotonic() + 20
    while service.keeper.state.number < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_policies_and_membranes_are_renewed_while_serving(clients, service, policies, folder, membrane_of):
    before = draw(clients["zoo"])
    policies(zoo=["cat"])
    wait_for_state(service, 2)
    after = draw(clients["zoo"])
    assert before.policy != after.policy
    assert difference(picture(before), picture(after)) > 20
    save(membrane_of("cat", seed=8), folder / "cat.safetensors")
    wait_for_state(service, 3)
    assert difference(picture(draw(clients["zoo"])), picture(after)) > 20


def test_a_corrupted_membrane_dropped_into_the_folder_changes_nothing_and_readyz_says_so(clients, service, folder):
    before = draw(clients["acme"])
    (folder / "cat.safetensors").write_bytes(b"\x80\x04not a membrane")
    (folder / "evil.safetensors").write_bytes(b"x" * 1000)
    wait_for_state(service, 2)
    after = draw(clients["acme"])
    assert difference(picture(before), picture(after)) == 0
    answer = httpx2.get(f"{clients['address']}/readyz")
    assert answer.status_code == 200
    assert {p["file"]: p["kept"] for p in answer.json()["problems"]} == {
        "cat.safetensors": True,
        "evil.safetensors": False,
    }
    assert str(folder.parent) not in answer.text


def test_a_required_membrane_that_is_gone_means_503_and_no_picture(clients, service, folder):
    (folder / "cat.safetensors").unlink()
    wait_for_state(service, 2)
    with pytest.raises(openai.InternalServerError) as caught:
        draw(clients["acme"], "an icon of a dog")
    assert caught.value.status_code == 503
    assert caught.value.body["code"] == "membrane_unavailable"
    assert service.audit.count() == 0
    draw(clients["zoo"])


def test_a_revoked_key_is_refused_from_the_next_state_on(clients, service, policies, keys, tmp_path):
    draw(clients["acme"])
    text = (tmp_path / "policies.toml").read_text()
    (tmp_path / "policies.toml").write_text(text.replace(keys.acme.id, "f" * 12))
    wait_for_state(service, 2)
    with pytest.raises(openai.AuthenticationError):
        draw(clients["acme"])


def test_a_policy_made_stricter_while_a_request_waits_does_count(clients, service, policies):
    gate = threading.Event()
    take = service.queue.take
    service.queue.take = lambda most, timeout: gate.wait(20) and take(most, timeout)
    time.sleep(0.5)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(draw(clients["zoo"])))
    thread.start()
    while not len(service.queue):
        time.sleep(0.01)
    policies(zoo=["cat"])
    wait_for_state(service, 2)
    gate.set()
    thread.join(60)
    assert [m["concept"] for m in answers[0].data[0].membranes] == ["cat"]


def test_the_openapi_document_describes_what_there_is(clients):
    document = httpx2.get(f"{clients['address']}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/images/generations",
        "/v1/models",
        "/v1/policies",
        "/v1/membranes",
        "/v1/audit",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    assert "422" not in json.dumps(document)
    assert document["paths"]["/v1/images/generations"]["post"]["security"] == [{"HTTPBearer": []}]


def test_figures(clients, keys):
    draw(clients["acme"])
    with pytest.raises(openai.BadRequestError):
        draw(clients["acme"], " ")
    text = httpx2.get(f"{clients['address']}/metrics", headers=header(keys, "admin")).text
    for line in (
        'spm_requests_total{route="/v1/images/generations",status="200",tenant="acme"} 1.0',
        'spm_requests_total{route="/v1/images/generations",status="400",tenant="acme"} 1.0',
        'spm_pictures_total{policy="cats",tenant="acme"} 1.0',
        'spm_membrane_opened_total{concept="cat"} 1.0',
        'spm_refusals_total{code="invalid_value"} 1.0',
        "spm_rows_waiting 0.0",
        "spm_state 1.0",
    ):
        assert line in text
    assert httpx2.get(f"{clients['address']}/metrics", headers=header(keys, "acme")).status_code == 403


def test_keys_and_prompts_are_never_logged(clients, keys, caplog, folder, service):
    with caplog.at_level(logging.DEBUG):
        draw(clients["acme"], "a very private wish")
        with pytest.raises(openai.BadRequestError):
            draw(clients["acme"], "a very private wish", extra_body={"steps": 99})
        with pytest.raises(openai.AuthenticationError):
            draw(clients["nobody"], "a very private wish")
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("semipermeable", "uvicorn", "fastapi"))]
    assert not any(keys.acme.key in line or "private wish" in line or "A" * 43 in line for line in ours)
