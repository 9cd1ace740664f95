"""Letters of what is said, without saying where: connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from peftjax.data.inputs.characters import Characters, read_characters
from peftjax.data.sources.types import SPEECH_RECOGNITION, Header, Source
from peftjax.models.family import CTC as HEAD
from peftjax.tasks import text_metrics
from peftjax.tasks.base import Arrays, Batch, Forward, Row, Task, check_data, model_inputs
from peftjax.tasks.metric import Metric


class CTC(Task):
  """-log of the probability of the letters `labels` [B, L] int32, over all ways in which the frames may say them.

  Metrics: loss, nats a letter; word_error_rate and character_error_rate of the likeliest letters of the frames, edits
  over what is wanted, compared in lower case and as far as the model has letters.
  """

  name = "ctc"
  head = HEAD
  label_names: tuple[str, ...] = ()
  num_labels = 0
  reads = ()
  input = "waveforms"
  fields = ("audio", "text")
  needs_no_labels = True
  main_metric = "word_error_rate"
  specs = (
    Metric("loss", "ratio", "nats a letter", False, False, numerator=("losses",), denominator=("letters",)),
    Metric("word_error_rate", "ratio", "", True, False, numerator=("word_errors",), denominator=("words",)),
    Metric("character_error_rate", "ratio", "", True, False, numerator=("letter_errors",), denominator=("wanted",)),
  )

  def __init__(self, blank: int = 0, characters: Characters | None = None):
    self.blank, self.characters = blank, characters

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> CTC:
    if header.task != SPEECH_RECOGNITION:
      check_data(cls.name, header)
    return cls()

  def of_model(self, folder: Path | None) -> Self:
    if folder is None or not (folder / "vocab.json").is_file():
      return self
    found = copy.copy(self)
    found.characters = read_characters(folder)
    found.blank = found.characters.blank_id
    return found

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    losses, letters, _ = self._losses(forward, batch)
    return (losses * batch["weight"]).sum(), (letters * batch["weight"]).sum(), {}

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """The likeliest letter of each frame, "best" int32 [B, frames], blank behind the recording."""
    losses, letters, outputs = self._losses(forward, batch)
    best = outputs["logits"].argmax(axis=-1).astype(jnp.int32)
    there = jnp.arange(best.shape[1]) < outputs["frame_lengths"][:, None]
    best = jnp.where(there, best, self.blank)
    return {"best": best, "loss": losses, "letters": letters, "weight": batch["weight"]}

  def _losses(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array, Mapping[str, jax.Array]]:
    outputs, labels = forward(model_inputs(batch)), batch["labels"]
    logits = outputs["logits"].astype(jnp.float32)
    beyond = jnp.arange(logits.shape[1]) >= outputs["frame_lengths"][:, None]
    none = labels < 0
    losses = optax.ctc_loss(
      logits, beyond.astype(jnp.float32), jnp.where(none, 0, labels), none.astype(jnp.float32), blank_id=self.blank
    )
    return losses, (~none).sum(axis=1).astype(jnp.float32), outputs

  def finish(self, predictions: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """With "prediction", the text, and edits and lengths of words and characters."""
    assert self.characters is not None
    said = [self.characters.decode(row) for row in predictions["best"]]
    wanted = [self.characters.known(source[int(index)].get("text", "")) for index in predictions["index"]]
    pairs = [one.lower() for one in said], [one.lower() for one in wanted]
    words, letters = text_metrics.word_edits(*pairs), text_metrics.character_edits(*pairs)
    return {**predictions, "prediction": np.array(said, str), "word_errors": words.edits, "words": words.wanted,
            "letter_errors": letters.edits, "wanted": letters.wanted}  # fmt: skip

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = ("prediction", "letters", "word_errors", "words", "letter_errors", "wanted")
    return {"losses": predictions["loss"].astype(np.float64)} | {name: predictions[name] for name in names}

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The "text"."""
    del source
    return [{"text": str(one)} for one in predictions["prediction"]]

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    rows, found = self.per_example(predictions), {}
    for spec in self.specs:
      above, below = rows[spec.numerator[0]].sum(), rows[spec.denominator[0]].sum()
      found[spec.name] = float(above / below) if below else float("nan")
    return found
