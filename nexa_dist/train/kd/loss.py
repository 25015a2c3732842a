"""The loss of knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2).

Of a token whose label is y, with logits z of the student and v of the teacher:

    (1 - lambda) · CE(z, y) + lambda · T² · KL(softmax(v / T) ‖ softmax(z / T))

CE = -ln softmax(z)_y is at temperature 1, KL(p ‖ q) = Σ p (ln p - ln q), both in nats. T² keeps the size of the second
gradient, which falls with 1 / T², as the paper has it. Its gradient is that of the paper's cross entropy with soft
targets, from which the KL differs by the teacher's entropy alone. `kd_lambda` is no `lmbda` of TRL, which is the share
of examples that the student generates. A token without a teacher has CE alone, whatever lambda is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

UNLEARNED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class Soft:
    """What a teacher says of the tokens that are learned: `known` (rows, tokens - 1), bool, at which positions;
    `logprobs` (n, k), of each of these n in order, softened by the temperature; `ids` (n, k), whose they are, None for
    the whole vocabulary in order."""

    known: torch.Tensor
    logprobs: torch.Tensor
    ids: torch.Tensor | None = None

    def kl(self, student: torch.Tensor, temperature: float) -> torch.Tensor:
        """The sum over the n positions, in nats; `student` are the logits there, shape (n, vocabulary)."""
        learned = functional.log_softmax(student / temperature, dim=-1)
        if self.ids is None:
            return functional.kl_div(learned, self.logprobs, reduction="sum", log_target=True)
        there = self.logprobs > -torch.inf
        apart = self.logprobs.where(there, 0.0) - learned.gather(-1, self.ids)
        return torch.where(there, self.logprobs.exp() * apart, 0.0).sum()


def of_model(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> Soft:
    """Of a teacher's logits, shape (rows, tokens, vocabulary), at position i for the token after it."""
    learned = labels[:, 1:] != UNLEARNED
    return Soft(learned, functional.log_softmax(logits[:, :-1][learned].float() / temperature, dim=-1))


def of_rows(ids: torch.Tensor, logprobs: torch.Tensor, labels: torch.Tensor, temperature: float) -> Soft:
    """Of stored ids and natural log-probabilities at temperature 1, shape (rows, tokens, k), at position i for token i
    itself; minus infinity where there is none. What is outside of the k counts as 0."""
    known = (labels[:, 1:] != UNLEARNED) & (logprobs[:, 1:] > -torch.inf).any(-1)
    return Soft(known, functional.log_softmax(logprobs[:, 1:][known] / temperature, dim=-1), ids[:, 1:][known])


def summed(logits: torch.Tensor, labels: torch.Tensor, teacher: Soft, temperature: float, share: float) -> torch.Tensor:
    """The loss of all learned tokens together, in nats. `logits` (rows, tokens, vocabulary) are the student's, at
    position i for the token after it; `labels` (rows, tokens) are UNLEARNED where nothing is learned; `share` is
    lambda."""
    learned = labels[:, 1:] != UNLEARNED
    at, taught = logits[:, :-1][learned].float(), teacher.known[learned]
    cross = functional.cross_entropy(at, labels[:, 1:][learned], reduction="none")
    if share == 0.0 or not taught.any():
        return cross.sum()
    soft = temperature**2 * teacher.kl(at if taught.all() else at[taught], temperature)
    return (cross * torch.where(taught, 1.0 - share, 1.0)).sum() + share * soft
