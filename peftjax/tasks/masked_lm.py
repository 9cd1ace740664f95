"""Masked language modelling: the tokens that stand where some are hidden."""

from __future__ import annotations

from peftjax.tasks.token_task import TokenTask


class MaskedLM(TokenTask):
  """Cross entropy of the tokens in `labels` [B, L] int32, `IGNORED` where none was hidden. In evaluations the same
  tokens are hidden every time.
  """

  name = "masked_lm"
  head = "masked_lm"
  input = "masked_tokens"
  fields = ("text",)
