"""Examples of JSONL and Parquet: what is learned of each row, and what is refused by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.late import Late, needs

np = pytest.importorskip("numpy")
needs("transformers")
transformers: Any = Late("transformers")

from nexa_dist.errors import UsageError  # noqa: E402
from nexa_dist.train.text import examples  # noqa: E402

CHATML = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (
    "{% for turn in messages %}<|{{ turn.role }}|>{% if loop.last or turn.role == 'user' %}{{ turn.content }}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a metal."},
    {"role": "assistant", "content": "Iron."},
    {"role": "user", "content": "Another, für mich?"},
    {"role": "assistant", "content": "Tin — or zinc."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizers: Any = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [json.dumps(CHAT)],
        trainer=tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found.chat_template = CHATML
    return found


def learned(tokenizer: Any, row: Any) -> tuple[str, str]:
    """All of the row's tokens as text, and those that are learned."""
    ((_, ids, mask),) = examples.encoded(tokenizer, [examples.example("x", row, tokenizer)])
    return tokenizer.decode(ids), tokenizer.decode([one for one, wanted in zip(ids, mask, strict=True) if wanted])


def test_of_a_chat_the_turns_of_the_assistant_are_learned_with_their_ends(tokenizer: Any) -> None:
    text, mine = learned(tokenizer, {"messages": CHAT})
    assert text == "".join(f"<|{turn['role']}|>{turn['content']}<|end|>\n" for turn in CHAT)
    assert mine == "Iron.<|end|>\nTin — or zinc.<|end|>\n"


def test_of_a_prompt_the_completion_is_learned_and_that_it_ends(tokenizer: Any) -> None:
    assert learned(tokenizer, {"prompt": "Name a metal: ", "completion": "tin"}) == (
        "<s>Name a metal: tin</s>",
        "tin</s>",
    )
    assert learned(tokenizer, {"text": "zinc and tin"}) == ("<s>zinc and tin</s>", "zinc and tin</s>")


def test_forms_may_be_mixed_and_each_keeps_its_own_tokens(tokenizer: Any) -> None:
    given: list[Any] = [{"text": "one"}, {"messages": CHAT}, {"text": "two"}] * 40
    found = list(examples.encoded(tokenizer, (examples.example(str(i), row, tokenizer) for i, row in enumerate(given))))
    assert sorted(int(one.where) for one, _, _ in found) == list(range(len(given)))
    for one, ids, mask in found:
        assert len(ids) == len(mask)
        assert tokenizer.decode(ids).replace("<s>", "").replace("</s>", "") == one.text


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (["text"], "list, expected an object"),
        ({"question": "a", "answer": "b"}, "no text under prompt, completion; its keys: question, answer"),
        ({"prompt": "a"}, "no text under completion"),
        ({"text": 3}, "no text under text"),
        ({"messages": []}, "no list of turns"),
        ({"messages": [{"role": "human", "content": "a"}]}, "messages[0] needs content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0] needs content"),
    ],
)
def test_other_rows_are_refused_by_their_place(tokenizer: Any, row: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        examples.example("train.jsonl:7", row, tokenizer)
    assert str(caught.value).startswith("train.jsonl:7: ")
    assert told in str(caught.value)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    forgetful = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UsageError, match="has no chat template"):
        examples.example("x", {"messages": CHAT}, forgetful)
    forgetful.chat_template = FORGETFUL
    with pytest.raises(UsageError, match="lays turn 2 out otherwise"):
        examples.example("x", {"messages": CHAT}, forgetful)


def test_lines_and_parquet_rows_are_named(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    parquet.write_table(pyarrow.table({"text": ["three"]}), table)
    assert list(examples.rows([lines, table])) == [
        (f"{lines}:1", {"text": "one"}),
        (f"{lines}:3", {"text": "two"}),
        (f"{table} row 1", {"text": "three"}),
    ]
    table.rename(tmp_path / "b")  # as $NEXA_DATA has it
    assert [row for _, row in examples.rows([tmp_path / "b"])] == [{"text": "three"}]
    lines.write_text('{"text": "one"}\n{"text"}\n')
    with pytest.raises(UsageError, match=r"a\.jsonl:2: no JSON"):
        list(examples.rows([lines]))
    table.write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match=r"b\.parquet: no Parquet file"):
        list(examples.rows([table]))
