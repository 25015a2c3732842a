"""The loss of a student, against values by hand: ln 3 and 0 are logits of 3/4 and 1/4."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.late import Late, needs

needs("torch")
torch: Any = Late("torch")
kd: Any = Late("nexa_dist.train.kd.loss")

Teacher = Callable[[float], Any]
STUDENT = [[[0.0, math.log(3)], [math.log(3), 0.0], [9.0, -9.0], [1.0, 1.0]]]
CE = 2 * math.log(4)
"""Of both learned tokens, each of which the student gives 1/4."""
KL = 2 * 0.5 * math.log(4 / 3)
"""Even odds against 1/4 and 3/4: (ln(2) + ln(2/3)) / 2, at each of them."""


def labels() -> Any:
    return torch.tensor([[kd.UNLEARNED, 0, 1, kd.UNLEARNED]])


def top(k: int, known: list[int]) -> Teacher:
    """Even odds at the tokens `known`, of the k first ids of two."""

    def teacher(temperature: float) -> Any:
        logprobs = torch.full((1, 4, k), -math.inf)
        logprobs[0, known] = math.log(0.5)
        return kd.of_rows(torch.arange(k).expand(1, 4, k), logprobs, labels(), temperature)

    return teacher


def even(temperature: float) -> Any:
    return kd.of_model(torch.zeros(1, 4, 2), labels(), temperature)


def loss(teacher: Teacher, temperature: float, share: float, student: Any = STUDENT) -> float:
    return float(kd.summed(torch.as_tensor(student), labels(), teacher(temperature), temperature, share))


@pytest.mark.parametrize("teacher", [even, top(2, [1, 2]), top(2, [0, 1, 2, 3])])
@pytest.mark.parametrize(("share", "expected"), [(0.0, CE), (1.0, KL), (0.25, 0.75 * CE + 0.25 * KL)])
def test_a_share_of_the_teacher_and_of_the_labels(teacher: Teacher, share: float, expected: float) -> None:
    assert loss(teacher, 1.0, share) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("teacher", [even, top(2, [1, 2])])
def test_a_temperature_softens_both_and_its_square_keeps_the_size(teacher: Teacher) -> None:
    less = 1 / (1 + math.sqrt(3))  # softmax of 0 and ln 3 halved
    kl = 0.5 * math.log(0.5 / less) + 0.5 * math.log(0.5 / (1 - less))
    assert loss(teacher, 2.0, 1.0) == pytest.approx(4 * 2 * kl, rel=1e-6)


def test_without_a_teacher_a_token_has_its_label_alone_and_what_is_not_learned_nothing() -> None:
    one_taught = loss(top(2, [2, 3]), 1.0, 0.25)
    assert one_taught == pytest.approx(CE / 2 + 0.75 * CE / 2 + 0.25 * KL / 2, rel=1e-6)
    assert loss(top(2, []), 1.0, 1.0) == pytest.approx(CE, rel=1e-6)
    changed = torch.tensor(STUDENT)
    changed[:, 2:] = 7.0
    assert loss(even, 1.0, 0.5, changed) == loss(even, 1.0, 0.5)


def test_what_is_outside_of_the_k_counts_as_nothing() -> None:
    only = loss(top(1, [1, 2]), 1.0, 1.0)  # all of the teacher is on id 0
    assert only == pytest.approx(math.log(4) + math.log(4 / 3), rel=1e-6)


def test_all_of_a_vocabulary_stored_is_the_teacher_itself_and_so_is_the_gradient() -> None:
    torch.manual_seed(0)
    said, learned = 3 * torch.randn(2, 5, 11), torch.randint(0, 11, (2, 5))
    learned[:, :2] = kd.UNLEARNED
    logprobs = torch.log_softmax(said, -1).roll(1, 1)  # of the token itself, not of the one after it
    order = torch.randperm(11)
    found = []
    stored = kd.of_rows(order.expand(2, 5, 11), logprobs[..., order], learned, 1.7)
    for teacher in (kd.of_model(said, learned, 1.7), stored):
        student = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = kd.summed(student, learned, teacher, 1.7, 0.6)
        value.backward()
        found.append((value.detach(), student.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    # softmax(z / T) - softmax(v / T), times T: the paper's gradient, here of lambda · T² · KL
    soft = [torch.softmax(one[:, 1:-1].detach() / 1.7, -1) for one in (student, said)]
    hard = torch.softmax(student[:, 1:-1].detach(), -1) - torch.nn.functional.one_hot(learned[:, 2:], 11)
    assert student.grad is not None
    torch.testing.assert_close(
        student.grad[:, 1:-1], 0.4 * hard + 0.6 * 1.7 * (soft[0] - soft[1]), rtol=1e-4, atol=1e-5
    )
    assert not student.grad[:, 0].any() and not student.grad[:, -1].any()
