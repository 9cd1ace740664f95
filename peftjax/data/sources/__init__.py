"""Sources: where examples come from, one file a kind."""

from __future__ import annotations

from peftjax.data.sources.opening import SOURCES, header_of, open_as, open_data
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
)

__all__ = [
  "CAUSAL_LM",
  "SEQ2SEQ_LM",
  "SOURCES",
  "TEXT_CLASSIFICATION",
  "TOKEN_CLASSIFICATION",
  "Dataset",
  "Example",
  "Header",
  "Named",
  "Source",
  "header_of",
  "open_as",
  "open_data",
]
