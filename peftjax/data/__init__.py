"""Data: sources, tokenizers, the order of batches, and the loaders that a run reads.

Opening and reading data sets:  open_data, Dataset, Source
Weights and data in packages:   fetch, model_folder
Text to ids:                    load_tokenizer, Tokenizer
Prompts and their responses:    Form, form_of
Batches:                        make_loaders, Loaders, TrainLoader, EvalLoader
"""

from __future__ import annotations

from peftjax.data.inputs.language import Form, form_of
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.loader import EvalLoader, Loaders, TrainLoader, make_loaders
from peftjax.data.packages import fetch, model_folder
from peftjax.data.sources import Dataset, Source, open_data

__all__ = [
  "Dataset",
  "EvalLoader",
  "Form",
  "Loaders",
  "Source",
  "Tokenizer",
  "TrainLoader",
  "fetch",
  "form_of",
  "load_tokenizer",
  "make_loaders",
  "model_folder",
  "open_data",
]
