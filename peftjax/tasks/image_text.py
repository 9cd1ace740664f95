"""Pictures and texts in one space (CLIP, Radford et al. 2021, arXiv 2103.00020): pairs, and classes by prompts."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from peftjax.data.inputs.captions import check_caption, with_label
from peftjax.data.inputs.image_text import text_positions, text_vocabulary, token_rows
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.data.sources.types import IMAGE_CLASSIFICATION, Header, Source
from peftjax.errors import UserError
from peftjax.models.clip import IMAGE_TEXT
from peftjax.tasks.base import (
  Arrays,
  Batch,
  Forward,
  Row,
  Task,
  check_data,
  cross_entropy,
  model_inputs,
  own_setting,
  weighted_mean,
)
from peftjax.tasks.classification import Classification
from peftjax.tasks.metric import Metric

_FAR = -1e30  # the similarity of a row that only fills the batch
_BLOCK = 2**22  # similarities that exist at once on the host


class ImageTextContrastive(Task):
  """CLIP's loss: cross entropy of each picture with all texts of the batch, and of each text with all pictures, by
  cosine times the model's learned scale; their mean. With `train.accumulate` the others are those of a micro-batch.

  Metrics: loss (nats) among the pairs of an evaluation batch; among all of the split, how often no other text is as
  near to a picture as its own (text_recall_at_1), and no other picture to a text (image_recall_at_1). Pairs with the
  same text are none's others.
  """

  name = "image_text_contrastive"
  head = IMAGE_TEXT
  label_names: tuple[str, ...] = ()
  num_labels = 0
  reads = ()
  input = "image_text"
  fields = ("image", "text")
  needs_no_labels = True
  main_metric = "text_recall_at_1"
  specs = (
    Metric("loss", "per-example", value="loss", unit="nats", higher_is_better=False),
    Metric("text_recall_at_1", "per-example", value="text_recall_at_1", share=True),
    Metric("image_recall_at_1", "per-example", value="image_recall_at_1", share=True),
  )

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> ImageTextContrastive:
    if header.name and "image" not in header.fields:
      held = ", ".join(header.fields) or "nothing of the kind"
      raise UserError(f"task.name={cls.name!r} reads pictures and texts; {header.name} holds {held}")
    return cls()

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    losses, hits = self._losses(forward(model_inputs(batch))["logits_per_image"], batch["weight"])
    weight = batch["weight"]
    return (losses * weight).sum(), weight.sum(), {"in_batch_accuracy": (hits * weight).sum()}

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    """Unit vectors of both sides, "image" and "text" [B, E] float32."""
    outputs = forward(model_inputs(batch))
    losses, _ = self._losses(outputs["logits_per_image"], batch["weight"])
    image, text = (outputs[f"{side}_embeds"].astype(jnp.float32) for side in ("image", "text"))
    return {"image": image, "text": text, "loss": losses, "weight": batch["weight"]}

  def _losses(self, logits: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B] float32 each: the losses, and 1 where a picture's own text is the nearest."""
    logits = jnp.where((weight[:, None] > 0) & (weight[None, :] > 0), logits.astype(jnp.float32), _FAR)
    own = jnp.arange(len(logits))
    losses = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    return losses, (logits.argmax(axis=1) == own).astype(jnp.float32)

  def finish(self, predictions: dict[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    """With "text_id" int64 [N], equal where texts are."""
    examples = (source[int(index)] for index in predictions["index"])
    said = [str(one.get("text", one.get("label", ""))) for one in examples]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(said))}
    return {**predictions, "text_id": np.array([numbers[text] for text in said], np.int64)}

  def per_example(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    image, text, ids = (predictions[name] for name in ("image", "text", "text_id"))
    return {
      "loss": predictions["loss"],
      "text_recall_at_1": _nearest(image, text, ids),
      "image_recall_at_1": _nearest(text, image, ids),
    }

  def answers(self, predictions: Mapping[str, np.ndarray], source: Source) -> list[Row]:
    """The picture's "embedding", and its "cosine" with the text where it has one of its own."""
    said: list[Row] = []
    for index, image, text in zip(*(predictions[name] for name in ("index", "image", "text"))):
      cosine = {"cosine": float(image.astype(np.float64) @ text)} if "text" in source[int(index)] else {}
      said.append({"embedding": image.tolist(), **cosine})
    return said

  def metrics(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    rows = self.per_example(predictions)
    found = {"loss": weighted_mean(predictions["loss"], predictions["weight"])}
    return found | {name: float(rows[name].mean()) for name in ("text_recall_at_1", "image_recall_at_1")}


def _nearest(queries: np.ndarray, keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """[N] int32: whether no key of another id is as near to a query as its own; a tie counts against it."""
  found = np.zeros(len(queries), np.int32)
  step = max(1, _BLOCK // max(len(keys), 1))
  for start in range(0, len(queries), step):
    part = slice(start, start + step)
    similar = queries[part] @ keys.T
    own = (queries[part] * keys[part]).sum(axis=1, keepdims=True)
    found[part] = ~((ids[part, None] != ids) & (similar >= own)).any(axis=1)
  return found


class ZeroShotClassification(Classification):
  """Classes of pictures by a text for each: a class's logit is the cosine of the picture with its text, times the
  model's learned scale. Untrained, this is zero-shot classification; trained, pictures and texts move together to
  where the right pairs are nearest, with no head drawn anew.

  Settings beside `class_weights`: `prompt`, in which "{label}" stands for the name of a class.
  """

  settings = {**Classification.settings, "prompt": "a photo of a {label}"}

  def __init__(self, header: Header, prompt: str, settings: ConfigDict, folder: Path | None = None):
    super().__init__(settings.name, header.label_names, settings.label_smoothing, settings.get("class_weights", ()))
    self.head, self.input, self.fields = IMAGE_TEXT, "images", ("image", "label")
    self.prompt, self._folder = prompt, folder

  @classmethod
  def make(cls, settings: ConfigDict, header: Header) -> Classification:
    if header.task != settings.name:  # which new examples of a trained run are for
      check_data(IMAGE_CLASSIFICATION, header)
    prompt = own_setting(cls, settings, "prompt")
    if header.name:
      check_caption("task.prompt", prompt, header)
    if "{label}" not in str(prompt) or not header.label_names:
      raise UserError(f"task.prompt={prompt!r:.60}: expected a text with {{label}} in it, and classes to name")
    Classification.make(settings, dataclasses.replace(header.header, task=""))  # checks the other settings
    return cls(header, prompt, settings)

  def of_model(self, folder: Path | None) -> Self:
    if folder is None:
      raise UserError(f"task.name={self.name!r}: a model of your own brings no tokenizer for the texts of classes")
    found = copy.copy(self)
    found._folder = folder
    return found

  @functools.cached_property
  def texts(self) -> dict[str, np.ndarray]:
    """The classes' `input_ids` and `attention_mask` int32 [C, L], as long as the longest."""
    assert self._folder is not None
    tokenizer = load_tokenizer(self._folder, text_positions(self._folder))
    tokenizer.check_fits(text_vocabulary(self._folder))
    said = [with_label(self.prompt, name) for name in self.label_names]
    ids, mask = token_rows(tokenizer, said, max(len(one) for one in tokenizer.encode(said).ids))
    return {"input_ids": ids, "attention_mask": mask}

  def loss(self, forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, Arrays]:
    return super().loss(self._with_texts(forward), batch, key)

  def predict(self, forward: Forward, batch: Batch) -> Arrays:
    return super().predict(self._with_texts(forward), batch)

  def _with_texts(self, forward: Forward) -> Forward:
    def logits(inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
      return {"logits": forward({**inputs, **self.texts})["logits_per_image"]}

    return logits
