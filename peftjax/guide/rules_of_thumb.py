"""Rules of thumb that the literature gives for the choice, with their sources; several contradict one another.

A rule does not rank anything by itself: the guide shows those that apply, and which of them disagree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

FULL, PEFT, EITHER = "full", "peft", "either"


@dataclasses.dataclass(frozen=True)
class Wants:
  """What a user told the guide; 0 and "" stand for nothing said.

  Attributes:
    examples: training examples.
    tokens: tokens of an example.
    tasks: how many tasks the base is to serve.
    domain: "near" or "far" from the pretraining data.
    latency: "same": inference may cost no more than the base's.
    mixed_batches: requests of several tasks come in one batch.
    adapter_bytes: at most, on disk, for a task.
    retention: the rise of the loss on pretraining text that is tolerated, nats a token.
    budget_flops: for the training of one task.
  """

  examples: int = 0
  tokens: int = 0
  tasks: int = 1
  domain: str = ""
  latency: str = ""
  mixed_batches: bool = False
  adapter_bytes: float = 0.0
  retention: float = 0.0
  budget_flops: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule: when it applies, what it favours, its words and its source."""

  favours: str
  says: str
  source: str
  applies: Callable[[Wants], bool]


RULES: tuple[Rule, ...] = (
  Rule(
    PEFT,
    "with fewer than about a thousand examples full fine-tuning overfits more",
    "claims full-overfits-small and low-data (docs/compare.md); He et al. 2021, arXiv 2106.03164",
    lambda wants: 0 < wants.examples < 1000,
  ),
  Rule(
    FULL,
    "with sufficient data full fine-tuning is the most accurate",
    "claim full-best-with-data; Biderman et al. 2024, arXiv 2405.09673, for code and mathematics",
    lambda wants: wants.examples >= 100_000,
  ),
  Rule(
    FULL,
    "far from the pretraining data more of the model has to change",
    "claim full-when-far; Biderman et al. 2024, arXiv 2405.09673",
    lambda wants: wants.domain == "far",
  ),
  Rule(
    PEFT,
    "tasks far from pretraining suit PEFT, which keeps what was learned",
    "claim peft-when-far",
    lambda wants: wants.domain == "far",
  ),
  Rule(
    PEFT,
    "one base with many small adapters replaces one model per task",
    "claim single-base-many-adapters",
    lambda wants: wants.tasks > 1,
  ),
  Rule(
    PEFT,
    "what is frozen is not forgotten as much; a detached adapter gives the base back bit for bit",
    "claims knowledge-retained and forgetting-full",
    lambda wants: wants.retention > 0,
  ),
  Rule(
    FULL,
    "at a small learning rate full fine-tuning forgets less than most adapters do",
    "PEFT's method comparison: 0.030 nats against 0.050 (LoRA r=32) and 0.314 (IA3 at 5e-3)",
    lambda wants: wants.retention > 0,
  ),
  Rule(
    PEFT,
    "LoRA at a searched rate on all linear layers matches full fine-tuning on small and medium instruction data",
    "Biderman et al. 2024, arXiv 2405.09673; claim comparable-at-fraction",
    lambda wants: wants.examples < 100_000,
  ),
)


def applying(wants: Wants) -> list[Rule]:
  """The rules whose condition holds for the wishes, in the order of the table."""
  return [rule for rule in RULES if rule.applies(wants)]


def conflicts(rules: Sequence[Rule]) -> list[tuple[Rule, Rule]]:
  """Pairs of which one favours full fine-tuning and the other PEFT."""
  return [(one, other) for one in rules for other in rules if (one.favours, other.favours) == (FULL, PEFT)]
