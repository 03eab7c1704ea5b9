"""Who may come in: hosts and keys, over real sockets; paths with a slash at their end."""

import http.client
import json

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from visual_ar.app.guard import Entrance, Guard, entrance
from visual_ar.cli import demo as demo_command
from visual_ar.cli import serve as serve_command
from visual_ar.cli.main import app

PATH = "/v1/images/generations"
KEY = "sk-Vf7+/="
VALID = {"prompt": "dog", "seed": 3}
GETS = ("/health", "/v1/models", "/v1/models/tiny", "/metrics", "/nonesuch", "/openapi.json")


def ask(address, hosts, path="/v1/models", method="GET", body=None):
    """Sends a request with exactly these `Host` headers; gives its status and its document."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    connection.putrequest(method, path, skip_host=True)
    for host in hosts:
        connection.putheader("Host", host)
    content = json.dumps(body).encode() if body else b""
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def is_error(document):
    return document["error"].keys() == {"message", "type", "param", "code"}


def test_only_names_of_this_machine_reach_loopback(tiny_pipeline, serve):
    address, engine = serve(tiny_pipeline, entrance=entrance("127.0.0.1", ["Pictures.example"]))
    for host in (
        *("localhost", "127.0.0.1", "[::1]", "LOCALHOST:80", "[::1]:8000", "127.0.0.1:65535"),
        *("pictures.example", "pictures.example:443"),
    ):
        assert ask(address, [host])[0] == 200, host
    for host in (
        *("evil.example", "evil.example:8000", "localhost.evil.example", "evil.example#localhost"),
        *("localhost@evil.example", "localhost:80:80", "", "127.0.0.1.", "[::1", "::1", "1.2.3.4"),
        *("localhost, evil.example", "localhost:", "localhost evil", "x" * 1000),
    ):
        for path, method, body in (("/v1/models", "GET", None), (PATH, "POST", VALID)):
            status, document = ask(address, [host], path, method, body)
            # What HTTP itself forbids never comes as far as the guard.
            assert status in (400, 403) and is_error(document), host
            assert "a" * 100 not in document["error"]["message"]
    status, document = ask(address, ["evil.example"])
    assert status == 403 and document["error"]["code"] == "host_not_allowed"
    assert "Host must be one of" in document["error"]["message"]
    assert "'evil.example'" in document["error"]["message"]
    assert ask(address, ["localhost", "evil.example"])[0] in (400, 403)
    assert engine.stats.finished == engine.stats.waiting == engine.stats.busy == 0


def test_any_name_reaches_a_service_on_a_network(tiny_pipeline, serve):
    address, _ = serve(tiny_pipeline, entrance=entrance("0.0.0.0"))
    assert ask(address, ["any.example"])[0] == 200
    named, _ = serve(tiny_pipeline, entrance=entrance("0.0.0.0", ["this.example"]))
    assert [ask(named, [host])[0] for host in ("this.example", "localhost", "any.example")] == [
        *(200, 200),
        403,
    ]


def test_without_the_key_nobody_draws(tiny_pipeline, serve):
    address, engine = serve(tiny_pipeline, entrance=entrance("0.0.0.0", key=KEY))
    assert httpx.get(f"{address}/health").status_code == 200
    assert httpx.get(f"{address}/health/").status_code == 200
    wrong = ("", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}")
    for given in (None, *wrong, f"Bearer {KEY} {KEY}", "Bearer \xff"):
        headers = {} if given is None else {"Authorization": given.encode("latin-1")}
        for send in (
            lambda headers=headers: httpx.post(address + PATH, json=VALID, headers=headers),
            lambda headers=headers: httpx.get(f"{address}/v1/models", headers=headers),
            lambda headers=headers: httpx.get(f"{address}/metrics", headers=headers),
            lambda headers=headers: httpx.get(f"{address}/nonesuch", headers=headers),
        ):
            answer = send()
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert is_error(answer.json()) and answer.json()["error"]["code"] == "invalid_api_key"
            assert KEY not in answer.text
    assert engine.stats.finished == 0
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}"}
        assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 200
    answer = httpx.post(address + PATH, json=VALID, headers=headers, timeout=300)
    assert len(answer.json()["data"]) == 1


def test_the_official_client_brings_the_key(tiny_pipeline, serve):
    openai = pytest.importorskip("openai")
    address, _ = serve(tiny_pipeline, entrance=entrance("127.0.0.1", key=KEY))
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        assert len(client.images.generate(prompt="dog").data) == 1
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="got a wrong key"),
    ):
        client.images.generate(prompt="dog")


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "schlüssel", "a\x7f"])
def test_a_key_that_no_header_can_carry_is_refused(key):
    with pytest.raises(ValueError, match="api-key must be one or more visible ASCII") as told:
        entrance("127.0.0.1", key=key)
    assert not key.strip() or key not in str(told.value)


@pytest.mark.parametrize("name", ["", "a b", "a:80", "http://a", "a/", "é", "*"])
def test_a_name_that_is_no_host_is_refused(name):
    with pytest.raises(ValueError, match="allow-host must be a host name without a port"):
        entrance("127.0.0.1", [name])


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.8.8.8", "LocalHost"])
def test_loopback_is_known_by_all_its_addresses(address):
    hosts = entrance(address).hosts
    assert {"localhost", "127.0.0.1", "[::1]"} <= hosts
    assert (f"[{address}]" if ":" in address else address.lower()) in hosts


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.0.2", "this.example"])
def test_elsewhere_any_host_is_let_in(address):
    assert entrance(address) == Entrance()


@pytest.mark.parametrize("host", ["a\0b", "\udcff", "x" * 300, "256.0.0.1", "a b", "\x1b[2J"])
@pytest.mark.parametrize("command", ["serve", "demo"])
def test_what_is_no_address_is_a_sentence(command, host):
    told = CliRunner().invoke(app, [command, "--host", host, "--port", "0"])
    assert told.exit_code == 1 and told.stderr.startswith("Error: host and port must be free")
    assert told.stderr.count("\n") == 1 and "\x1b" not in told.stderr


def test_a_key_is_never_printed(tiny_pipeline, tmp_path):
    assert KEY not in repr(entrance("0.0.0.0", key=KEY))
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    for words in (["--port", "99999"], ["--host", "256.0.0.1"], ["-m", "absent", "--debug"]):
        told = CliRunner().invoke(app, ["serve", "--api-key", KEY, *words])
        assert told.exit_code != 0 and KEY not in told.output
    helped = CliRunner().invoke(app, ["serve", "--help"], env={"VISUAL_AR_API_KEY": KEY})
    assert helped.exit_code == 0 and KEY not in helped.output


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_command_takes_its_options(classes, monkeypatch, host, warned):
    answers, words = [], ["serve", "-m", str(classes), "--port", "0", "--host", host]

    def ask_once(application, listener, drain, connections):
        assert connections > 64  # a connection for every picture that may wait
        client = TestClient(application, base_url="http://proxy.example")
        headers = {"Authorization": f"Bearer {KEY}"}
        answers.append([client.get("/v1/models", headers=h).status_code for h in ({}, headers)])

    monkeypatch.setattr(serve_command, "run", ask_once)
    for given, environment in (
        ([], {}),
        ([], {"VISUAL_AR_API_KEY": KEY}),
        (["--api-key", KEY, "--allow-host", "Proxy.example"], {}),
    ):
        told = CliRunner().invoke(app, [*words, *given], env=environment)
        assert told.exit_code == 0, told.output
        assert told.stderr.startswith(f"Loading {classes}; http://{host}:")
        assert ("Anyone who reaches" in told.stderr) == (warned and not given and not environment)
        assert told.stdout.startswith("Serving classes on http://") and KEY not in told.output
    assert answers == (
        [[200] * 2, [401, 200], [401, 200]] if warned else [[403] * 2] * 2 + [[401, 200]]
    )


def test_the_page_is_guarded_too(classes, monkeypatch):
    answers = []

    def ask_once(application, listener, drain, connections):
        for name in ("proxy.example", "evil.example"):
            client = TestClient(application, base_url=f"http://{name}")
            answers.append(client.get("/").status_code)

    monkeypatch.setattr(demo_command, "run", ask_once)
    words = ["demo", "-m", str(classes), "--port", "0", "--allow-host", "proxy.example"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert told.stderr.startswith(f"Loading {classes}; http://127.0.0.1:")
    assert answers == [200, 403]


def test_a_slash_at_the_end_changes_nothing(tiny_pipeline, serve):
    address, _ = serve(tiny_pipeline)
    for path in GETS:
        plain = httpx.get(address + path)
        for slashes in ("/", "//"):
            same = httpx.get(address + path + slashes)
            assert same.status_code == plain.status_code and "location" not in same.headers
            if path not in ("/metrics", "/nonesuch", "/openapi.json"):
                assert same.json() == plain.json()
    answer = httpx.post(f"{address}{PATH}/", json=VALID, timeout=300)
    assert answer.json()["data"] == httpx.post(address + PATH, json=VALID).json()["data"]


def test_nothing_describes_the_routes(tiny_pipeline, serve, serving):
    import gradio as gr

    from visual_ar.app.web_demo import application

    address, _ = serve(tiny_pipeline)
    with gr.Blocks() as page:
        gr.Markdown("a page")
    shown = application(page)
    shown.add_middleware(Guard, entrance=entrance("127.0.0.1"))
    with serving(shown) as demo:
        for path in ("/openapi.json", "/docs", "/redoc", "/openapi.json/"):
            told = httpx.get(address + path)
            assert told.status_code == 404 and is_error(told.json())
            assert httpx.get(demo + path).status_code == 404, path
        assert httpx.get(demo).status_code == 200
        assert ask(demo, ["evil.example"], "/")[0] == 403
