"""The checkpoint itself, by transformers: answers with their speed, and log-likelihoods. It alone imports torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nexa_dist.errors import EXIT_OK, UsageError
from nexa_dist.stages.contract import EXIT_STOPPED, StageEnv
from nexa_dist.stages.eval.config import EvalConfig
from nexa_dist.stages.eval.record import Record
from nexa_dist.stages.references import model_in
from nexa_dist.stages.row_files import Id, Row


class Checkpoint:
    """A causal language model and its tokenizer, on the first GPU where there is one."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError for what transformers cannot load."""
        import torch
        import transformers

        hf: Any = transformers
        self._torch: Any = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.tokenizer = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
            self.model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UsageError(f"inputs.model: {folder}: {str(error).splitlines()[0][:300]}") from error
        self.model.to(self.device).eval()
        self.most = int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 20)
        self.pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id or 0 if self.pad is None else self.pad

    def prompt_ids(self, text: str) -> list[int]:
        """A question as the model was taught it: by its chat template, where it has one."""
        if getattr(self.tokenizer, "chat_template", None):
            turns = [{"role": "user", "content": text}]
            made = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            return list(self.tokenizer(made, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(text)["input_ids"])

    def answers(self, prompts: Sequence[list[int]], most: int) -> list[tuple[str, int]]:
        """Text and number of tokens of the greedy continuation of each."""
        torch = self._torch
        room = max(1, self.most - most)
        cut = [ids[-room:] or [self.pad] for ids in prompts]
        width = max(len(ids) for ids in cut)
        ids = torch.tensor([[self.pad] * (width - len(one)) + one for one in cut], device=self.device)
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in cut], device=self.device)
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=min(most, self.most - width), do_sample=False,
                num_beams=1, pad_token_id=self.pad,
            )  # fmt: skip
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        found = []
        for row in made[:, width:].tolist():
            size = next((at for at, token in enumerate(row) if token in stops), len(row))
            found.append((self.tokenizer.decode(row[:size], skip_special_tokens=True), size))
        return found

    def nll(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Negative log-likelihood in nats of the second part of each, given the first, summed over its tokens. The
        first token of all has nothing before it and does not count."""
        torch = self._torch
        width = max(len(before) + len(after) for before, after in rows)
        ids = torch.full((len(rows), width), self.pad)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for at, (before, after) in enumerate(rows):
            size = len(before) + len(after)
            ids[at, :size] = torch.tensor(before + after)
            labels[at, len(before) : size] = torch.tensor(after)
            mask[at, :size] = 1
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten().to(self.device),
                ignore_index=-100, reduction="none",
            )  # fmt: skip
        return [float(one) for one in loss.view(len(rows), -1).sum(1).tolist()]


def measure(config: EvalConfig, env: StageEnv, record: Record, rows: Sequence[tuple[Id, Row]]) -> int:
    """Answers and log-likelihoods of all rows that have none. A batch that was cut off is done again whole, so that
    each row is computed beside the same ones. Returns the exit code."""
    wanted = []
    if config.generate:
        wanted.append(("answer", config.generate.batch, record.answers))
    if config.perplexity:
        wanted.append(("nll", config.perplexity.batch, record.nll))
    todo = [(what, list(batch)) for what, size, known in wanted for batch in _batches(rows, size)
            if not all(row in known for row, _ in batch)]  # fmt: skip
    if not todo:
        return EXIT_OK
    checkpoint = Checkpoint(model_in(env.inputs["model"], "inputs.model"))
    for at, (what, batch) in enumerate(todo):
        if env.stop():
            return EXIT_STOPPED
        (_answer if what == "answer" else _likelihood)(config, checkpoint, record, batch)
        env.report(at + 1, len(todo))
    record.sync()
    return EXIT_OK


def _batches(rows: Sequence[tuple[Id, Row]], size: int) -> Iterator[Sequence[tuple[Id, Row]]]:
    for at in range(0, len(rows), size):
        yield rows[at : at + size]


def _answer(config: EvalConfig, checkpoint: Checkpoint, record: Record, batch: Sequence[tuple[Id, Row]]) -> None:
    assert config.generate
    prompts = [checkpoint.prompt_ids(str(row.get(config.prompt) or "")) for _, row in batch]
    began = time.monotonic()
    made = checkpoint.answers(prompts, config.generate.max_new_tokens)
    took = (time.monotonic() - began) / len(batch)
    for (row, _), (text, size) in zip(batch, made, strict=True):
        record.local("answer", row, text=text, tokens=size, seconds=took)


def _likelihood(config: EvalConfig, checkpoint: Checkpoint, record: Record, batch: Sequence[tuple[Id, Row]]) -> None:
    asked = config.perplexity
    assert asked
    window, parts = min(asked.window, checkpoint.most), []
    for _, row in batch:
        text = str(row.get(asked.column) or "")
        before = checkpoint.prompt_ids(str(row.get(asked.context) or "")) if asked.context else []
        if not before and checkpoint.tokenizer.bos_token_id is not None:
            before = [checkpoint.tokenizer.bos_token_id]
        after = list(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])
        kept = after[: window - 1]
        parts.append((before[-(window - len(kept)) :], kept, len(after) - len(kept)))
    found = checkpoint.nll([(before, after) for before, after, _ in parts])
    for (row_id, _), (before, after, cut), nats in zip(batch, parts, found, strict=True):
        tokens = len(after) if before else max(0, len(after) - 1)
        record.local("nll", row_id, nats=nats, tokens=tokens, cut=cut)
