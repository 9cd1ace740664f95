"""The packaged data sets: which builder makes each, and its preparation in the cache, once."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging as absl_logging

from peftjax.data.packages import cache_folder, only_one
from peftjax.errors import UserError, nearest

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

# name -> builder folder and config
PACKAGED = {
  "movie_reviews": ("reviews", "movies"),
  "reviews_tweets": ("reviews", "tweets"),
  "reviews_products": ("reviews", "products"),
  "reviews_editorials": ("reviews", "editorials"),
  "reuters_r52": ("topics", "reuters_r52"),
  "reuters_r8": ("topics", "reuters_r8"),
  "newsgroups20": ("topics", "newsgroups20"),
  "banking77": ("banking77", None),
  "banking77_pairs": ("banking77_pairs", None),
  "ner_optimus": ("ner_optimus", None),
  "wnut17": ("wnut17", None),
  "wnut17_questions": ("wnut17_questions", None),
  "cmudict": ("cmudict", "words"),
  "cmudict_names": ("cmudict", "names"),
  "interface_pt": ("interface_pt", None),
  "molecules": ("molecules", None),
  "self_instruct": ("instructions", "self_instruct"),
  "gsm8k": ("instructions", "gsm8k"),
  "sign_digits": ("sign_digits", None),
  "spoken_digits": ("spoken_digits", "heard"),
  "spoken_digits_unheard": ("spoken_digits", "unheard"),
  "ljspeech_samples": ("ljspeech_samples", None),
}


def builder_of(name: str) -> tfds.core.DatasetBuilder:
  """The builder of a packaged data set as the cache has it, prepared or not.

  Raises:
    UserError: no such data set.
  """
  if name not in PACKAGED:
    raise UserError(f"data.name: no packaged data set {name!r}; {nearest(name, PACKAGED)}")
  folder, config = PACKAGED[name]
  module = importlib.import_module(f"peftjax.data.builders.{folder}.{folder}_dataset_builder")
  with _quiet():
    return module.Builder(config=config, data_dir=str(cache_folder("datasets")), file_format="array_record")


def prepared_builder(name: str) -> tfds.core.DatasetBuilder:
  """The builder of a packaged data set, its array_record files written if they are not in the cache yet.

  Raises:
    UserError: no such data set, its package could not be had, or the cache cannot be written.
  """
  builder = builder_of(name)
  if builder.is_prepared():
    return builder
  root = cache_folder("datasets")
  with _quiet():
    try:
      with only_one(root / f"{name}.lock"):
        builder = builder_of(name)  # a builder sees what was on disk when it was made
        if not builder.is_prepared():
          print(f"preparing data set {name}", file=sys.stderr)
          builder.download_and_prepare()
    except OSError as error:
      raise UserError(f"cannot prepare {name} in {root}: {error.strerror or error}") from None
  return builder_of(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """TFDS prints to stdout, which may be carrying JSON, and warns of every folder that is not there yet."""
  import tensorflow_datasets as tfds

  tfds.disable_progress_bar()
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl_logging.set_verbosity(verbosity)
