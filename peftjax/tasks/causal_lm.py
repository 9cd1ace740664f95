"""Next-token prediction: continued pretraining, and instruction tuning with the loss on responses alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from peftjax.data.inputs.base import IGNORED
from peftjax.tasks.base import Batch
from peftjax.tasks.token_task import TokenTask


class CausalLM(TokenTask):
  """Cross entropy of every token that has a label, given what comes before it.

  `labels` [B, L] int32 are the token ids themselves, or `IGNORED` where no loss is wanted (prompts, padding); without
  them every token counts. In packed rows, which have `segment_ids` [B, L], a segment's first token is not predicted
  from the segment before it.
  """

  name = "causal_lm"
  head = "causal_lm"
  collate = "causal"
  fields = ("text",)
  writes_text = True

  def targets(self, batch: Batch) -> jax.Array:
    return targets_of(batch)


def targets_of(batch: Batch) -> jax.Array:
  """int32[B, L]: the token after each, `IGNORED` where there is none to predict."""
  ids = batch["input_ids"]
  labels = batch.get("labels")
  if labels is None:
    mask = batch.get("attention_mask")
    labels = ids if mask is None else jnp.where(mask > 0, ids, IGNORED)
  following = labels[:, 1:]
  segments = batch.get("segment_ids")
  if segments is not None:
    following = jnp.where(segments[:, 1:] == segments[:, :-1], following, IGNORED)
  return jnp.pad(following, ((0, 0), (0, 1)), constant_values=IGNORED)
