"""Whether a small student learns more from a teacher than from the labels alone: `scripts/bench_kd TEACHER GLOSSES`.

TEACHER is a pretrained directory, GLOSSES WordNet's data.noun: a row is a noun and, to be learned, its definition. The
teacher reads each row once, and its top-k logits are stored beside it. Then students of 5 to 10 M parameters, with the
teacher's tokenizer and random weights, are trained by backend hf on one rank, by labels alone and with trainer.use_kd,
the same steps, rows, order and first weights, a seed after the other. Shown is the held-out cross entropy of the
definitions, in nats a token, of every training, and the mean of the differences of the same seed with its 95 % interval
(Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.processes.train_ranks import Start, result, train

LENGTH = 40
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Of the 97.5th percentile, by the number of differences."""
SHAPE = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}


def glosses(file: Path, count: int) -> list[dict[str, str]]:
    """Rows of a noun and its definition, the same ones each time; without the examples that follow a semicolon."""
    found = []
    for line in file.read_text().splitlines():
        if line.startswith("  ") or " | " not in line:
            continue
        head, _, gloss = line.partition(" | ")
        meaning = gloss.split(";")[0].split('"')[0].strip()
        if 4 <= len(meaning.split()) <= 18:
            found.append({"prompt": f"{head.split()[4].replace('_', ' ')}:", "completion": f" {meaning}."})
    return random.Random(0).sample(found, count)


def ask(teacher: Path, rows: list[dict[str, str]], k: int, into: Path) -> float:
    """Write the rows with the teacher's k most probable tokens. Returns its own cross entropy on the completions, in
    nats a token."""
    import torch
    import transformers

    from nexa_dist.train.text import examples, stored, vocabulary

    hf: Any = transformers
    tokenizer = hf.AutoTokenizer.from_pretrained(teacher, local_files_only=True)
    model = hf.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, local_files_only=True).eval()
    name, loss, learned = vocabulary.digest(tokenizer.get_vocab()), 0.0, 0
    told = list(examples.encoded(tokenizer, [examples.example("", row, tokenizer) for row in rows]))
    with open(into, "w") as out:
        for start in range(0, len(rows), 16):
            batch = told[start : start + 16]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for _, one, _ in batch], batch_first=True)
            with torch.no_grad():
                said = torch.log_softmax(model(input_ids=ids).logits, -1)
            for number, (_, one, mask) in enumerate(batch):
                first = int(mask.argmax())
                of_row = said[number, first - 1 : len(one) - 1]
                loss -= float(of_row[torch.arange(len(of_row)), torch.tensor(one[first:])].sum())
                learned += len(of_row)
                top = of_row.topk(k)
                more = {stored.TOKENS: one[first:], stored.IDS: top.indices.tolist()}
                sizes = [[round(value, 5) for value in values] for values in top.values.tolist()]
                row = {**rows[start + number], **more, stored.LOGPROBS: sizes, stored.VOCABULARY: name}
                out.write(json.dumps(row) + "\n")
    return loss / learned


def student(teacher: Path, seed: int, into: Path) -> int:
    """A Llama of random weights with the teacher's tokenizer. Returns its parameters."""
    import torch
    import transformers

    hf: Any = transformers
    asked = hf.AutoConfig.from_pretrained(teacher, local_files_only=True)
    ids = {name: getattr(asked, name) for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    torch.manual_seed(seed)
    settings = hf.LlamaConfig(**SHAPE, **ids, max_position_embeddings=LENGTH, tie_word_embeddings=True)
    model = hf.LlamaForCausalLM(settings)
    model.save_pretrained(into)
    hf.AutoTokenizer.from_pretrained(teacher, local_files_only=True).save_pretrained(into)
    return int(model.num_parameters())


def pair(folder: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The held-out loss of a training by labels alone, `ce`, and of one with the teacher, `kd`."""
    trainer: dict[str, Any] = {
        "steps": args.steps, "batch_size": args.batch, "learning_rate": 2e-3, "warmup_steps": args.steps // 10,
        "log_every": 10, "save_every": args.steps, "seed": seed,
    }  # fmt: skip
    taught = {"use_kd": True, "kd_temperature": args.temperature, "kd_lambda": args.share}
    dataset = {"source": "examples", "path": "rows.jsonl", "sequence_length": LENGTH, "held_out": 0.2}
    config = {"backend": "hf", "model": {"path": f"student-{seed}"}, "dataset": dataset}
    ways = {"ce": trainer, "kd": {**trainer, **taught}}
    starts = [Start(f"{way}-{seed}", {**config, "trainer": steps}, ranks=1) for way, steps in ways.items()]
    codes, said = train(folder, starts)
    if codes != [[0], [0]]:
        sys.exit(f"error: seed {seed}: exit codes {codes}: {said[-3000:]}")
    return {way: float(result(folder, f"{way}-{seed}")["eval_report"]["eval_loss_nats"]) for way in ways}


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval."""
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), T_95[len(differences)] * spread


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench_kd", description=__doc__)
    parser.add_argument("teacher", type=Path, metavar="TEACHER")
    parser.add_argument("glosses", type=Path, metavar="GLOSSES")
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_95), metavar="2..8")
    parser.add_argument("--top", type=int, default=64, metavar="K", help="stored tokens of a position")
    parser.add_argument("--temperature", type=float, default=1.5, help="kd_temperature")
    parser.add_argument("--lambda", type=float, default=0.5, dest="share", metavar="SHARE", help="kd_lambda")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="nexa-bench-kd-") as made:
        folder, began = Path(made), time.process_time()
        own = ask(args.teacher, glosses(args.glosses, args.rows), args.top, folder / "rows.jsonl")
        took_s = time.process_time() - began
        say(f"the teacher read {args.rows} rows in {took_s:.0f} CPU seconds: {own:.3f} nats a token")
        size, found = 0, list[dict[str, float]]()
        for seed in range(args.seeds):
            size = student(args.teacher, seed, folder / f"student-{seed}")
            found.append(pair(folder, seed, args))
            say(f"  seed {seed}: {found[-1]}")
    asked = f"{args.rows} rows, {args.steps} steps of {args.batch}, {args.seeds} seeds"
    by = f"kd_temperature {args.temperature:g}, kd_lambda {args.share:g}"
    print(f"student of {size / 1e6:.1f} M parameters, {asked}, {by},")
    print(f"top {args.top} stored; held-out nats a token, the teacher's own on all rows {own:.3f}")
    for way, words in (("ce", "labels alone"), ("kd", "with the teacher")):
        each = [one[way] for one in found]
        print(f"{words:18}{statistics.mean(each):.4f} ({', '.join(f'{value:.4f}' for value in each)})")
    mean, half = interval([one["kd"] - one["ce"] for one in found])
    print(f"{'difference':17}{mean:+.4f} ± {half:.4f} (95 %)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
