"""A real checkpoint under the stage eval: its perplexity and answers are those that a loop by hand comes to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.late import Late, needs

pytest.importorskip("httpx")
pq: Any = pytest.importorskip("pyarrow.parquet")
needs("torch", "transformers", "tokenizers")
torch: Any = Late("torch")
transformers: Any = Late("transformers")

from nexa_dist.errors import UsageError  # noqa: E402
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv  # noqa: E402
from nexa_dist.stages.eval import work as stage  # noqa: E402
from nexa_dist.stages.load import load_stage  # noqa: E402
from tests.bytes_model import byte_llama  # noqa: E402

TEXTS = ["a cat", "the dog sat on a mat", "", "x" * 90, "rain", "it was late and the rain fell"]
ROWS = [{"id": n, "prompt": f"say {text[:3]}", "completion": text} for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of some thousand weights, with a tokenizer of bytes."""
    folder: Path = tmp_path_factory.mktemp("model")
    byte_llama(folder)
    return folder


class Eval:
    def __init__(self, folder: Path, model: Path, **config: Any) -> None:
        self.folder, self.output, self.left = folder, folder / "out", 1 << 30
        self.notes: dict[str, Any] = {}
        self.model = model
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        inputs = {"rows": str(folder / "rows.jsonl"), "model": str(model)}
        (folder / "speed.json").write_text(json.dumps({"stage": "eval", "inputs": inputs, **config}))

    def stop(self) -> bool:
        self.left -= 1
        return self.left < 0

    def run(self) -> int:
        config = load_stage(self.folder / "speed.json")
        self.output.mkdir(exist_ok=True)
        inputs = {"rows": self.folder / "rows.jsonl", "model": self.model}
        env = StageEnv(inputs, self.output, 0, 1, self.stop, lambda *_, **__: None,
                       lambda **facts: self.notes.update(facts))  # fmt: skip
        stage.prepare(config, env)
        return stage.run(config, env)

    def table(self) -> list[dict[str, Any]]:
        (path,) = (self.output / "evals").glob("*.parquet")
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found


def test_perplexity_and_answers_are_those_of_a_loop_by_hand(tmp_path: Path, model: Path) -> None:
    made = Eval(tmp_path, model, perplexity={"batch": 4}, generate={"max_new_tokens": 6, "batch": 4})
    assert made.run() == 0
    net = transformers.AutoModelForCausalLM.from_pretrained(model, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
    total = count = 0.0
    for row, told in zip(ROWS, made.table(), strict=True):
        before, after = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"][:63]
        ids = torch.tensor([(before[-(64 - len(after)) :] if len(after) < 64 else []) + after])
        begin = ids.shape[1] - len(after)
        with torch.no_grad():
            odds = torch.log_softmax(net(ids).logits[0], -1)
            asked = torch.tensor([before])
            said = net.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=6, do_sample=False,
                                pad_token_id=1)[0, len(before) :]  # fmt: skip
        nats = -sum(float(odds[at - 1, ids[0, at]]) for at in range(begin, ids.shape[1]))
        assert told["nats"] == pytest.approx(nats, rel=1e-4, abs=1e-4) and told["tokens"] == len(after)
        assert told["answer"] == tokenizer.decode(said, skip_special_tokens=True)
        total, count = total + nats, count + len(after)
    summary = json.loads(next((made.output / "evals").glob("*.json")).read_text())
    assert summary["perplexity"]["value"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert 100 < summary["perplexity"]["value"] < 1000, "some 258 tokens, of which it knows nothing"
    assert made.notes["speed"]["tokens"] == 36 and made.notes["speed"]["tokens_per_s"] > 0


def test_stopped_between_its_batches_it_goes_on(tmp_path: Path, model: Path) -> None:
    made = Eval(tmp_path, model, perplexity={"batch": 2})
    made.left = 2
    assert made.run() == EXIT_STOPPED
    made.left = 1 << 30
    journal = made.output / ".journal.jsonl"
    first = journal.read_bytes()
    assert first.count(b"\n") == 4
    assert made.run() == 0
    assert journal.read_bytes().startswith(first) and len(made.table()) == 6


def test_a_folder_that_holds_no_model_is_refused_in_words(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no config\.json, so transformers cannot load it"):
        Eval(tmp_path, tmp_path / "empty", perplexity={}).run()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match=r"inputs\.model: "):
        Eval(tmp_path, tmp_path / "empty", perplexity={}).run()
    with pytest.raises(UsageError, match="tasks: lm-eval is not in this environment"):
        Eval(tmp_path, model, tasks={"names": ["arc_easy"]}).run()
