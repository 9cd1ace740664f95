"""Sources: where examples come from, one file a kind."""

from __future__ import annotations

from peftjax.data.sources.types import (
  CAUSAL_LM,
  SEQ2SEQ_LM,
  TEXT_CLASSIFICATION,
  TOKEN_CLASSIFICATION,
  Dataset,
  Example,
  Header,
  Named,
  Source,
  open_data,
)

__all__ = [
  "CAUSAL_LM",
  "SEQ2SEQ_LM",
  "TEXT_CLASSIFICATION",
  "TOKEN_CLASSIFICATION",
  "Dataset",
  "Example",
  "Header",
  "Named",
  "Source",
  "open_data",
]
