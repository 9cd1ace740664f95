"""Data: sources, inputs, the order of batches, and the loaders that a run reads.

Opening and reading data sets:  open_data, Dataset, Header, Source
Weights and data in packages:   fetch, model_folder
Examples to arrays:             make_input, Input
Text to ids:                    load_tokenizer, Tokenizer
Prompts and their responses:    Form, form_of
Batches:                        make_loaders, Loaders, TrainLoader, EvalLoader
"""

from __future__ import annotations

import sys

from peftjax.data.inputs import Input, chat, collating, language, make_input, packing, tokenizing
from peftjax.data.inputs.language import Form, form_of
from peftjax.data.inputs.tokenizing import Tokenizer, load_tokenizer
from peftjax.data.loader import EvalLoader, Loaders, TrainLoader, make_loaders
from peftjax.data.packages import fetch, model_folder
from peftjax.data.sources import Dataset, Header, Source, header_of, open_as, open_data

for _moved in (chat, collating, language, packing, tokenizing):  # scripts import them by the names they had here
  sys.modules[_moved.__name__.replace(".inputs.", ".")] = _moved

__all__ = [
  "Dataset",
  "EvalLoader",
  "Form",
  "Header",
  "Input",
  "Loaders",
  "Source",
  "Tokenizer",
  "TrainLoader",
  "fetch",
  "form_of",
  "header_of",
  "load_tokenizer",
  "make_input",
  "make_loaders",
  "model_folder",
  "open_as",
  "open_data",
]
