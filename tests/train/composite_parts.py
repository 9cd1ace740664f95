"""Two tiny models that are trained as one: what stands in a user's own file, families, source, input and task."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from peftjax.data import Input
from peftjax.data.sources import Dataset
from peftjax.models.family import Architecture, Family
from peftjax.models.layers import Runtime
from peftjax.tasks import Metric, Task

SPLITS = {"train": 24, "validation": 8, "test": 8}
WORDS, SIDE, HIDDEN = 5, 6, 4


class Text(nn.Module):
  runtime: Runtime

  @nn.compact
  def __call__(self, words: jax.Array) -> dict[str, jax.Array]:
    x = jnp.tanh(self.runtime.dense(7, True, name="dense")(words))
    return {"embedding": self.runtime.dense(HIDDEN, True, name="proj")(x)}


class UNet(nn.Module):
  channels: int

  @nn.compact
  def __call__(self, sample: jax.Array) -> dict[str, jax.Array]:
    x = nn.BatchNorm(use_running_average=True, name="norm")(nn.Conv(8, (3, 3), strides=2, name="conv_in")(sample))
    return {"embedding": nn.Dense(HIDDEN, name="out")(nn.silu(x).mean(axis=(1, 2)))}


def _family(name: str, kind: str, build: Any, inputs: Any) -> Family:
  return Family(
    model_types=(kind,),
    parse=lambda hf_config: int(hf_config.get("in_channels", 3)),
    architectures={name: Architecture(build, "part")},
    stacks=lambda config: {},
    inputs=inputs,
  )


TEXT = _family(
  "Text", "tiny_text", lambda config, runtime: Text(runtime),
  lambda config: {"words": jax.ShapeDtypeStruct((1, WORDS), jnp.float32)},
)  # fmt: skip
UNET = _family(
  "UNet", "UNet", lambda config, runtime: UNet(config),
  lambda config: {"sample": jax.ShapeDtypeStruct((1, SIDE, SIDE, config), jnp.float32)},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pairs:
  split: str

  def __len__(self) -> int:
    return SPLITS[self.split]

  def __getitem__(self, index: int) -> dict[str, Any]:
    random = np.random.default_rng([list(SPLITS).index(self.split), index])
    words = random.normal(size=WORDS).astype(np.float32)
    sample = random.normal(size=(SIDE, SIDE, 3)) + words[:3]
    return {"words": words, "sample": sample.astype(np.float32)}


def pairs(rest: str, named: Any) -> Dataset:
  del rest, named
  return Dataset(
    name="pairs", label_names=(), splits=SPLITS, fields=("words", "sample"), identity={"pairs": 1}, read=Pairs
  )


class PairInput(Input):
  def spec(self, rows: int, length: int) -> dict[str, Any]:
    return {
      "words": jax.ShapeDtypeStruct((rows, WORDS), np.dtype(np.float32)),
      "sample": jax.ShapeDtypeStruct((rows, SIDE, SIDE, 3), np.dtype(np.float32)),
    }

  def encode(self, example: Any, rng: Any) -> dict[str, Any]:
    return {name: example[name] for name in ("words", "sample")}


class Matching(Task):
  """How far the two embeddings of a pair are apart."""

  name = "tests.train.composite_parts:Matching"
  head = "composite"
  fields = ("words", "sample")
  input = "tests.train.composite_parts:PairInput"
  label_names, num_labels, needs_no_labels = (), 0, True
  main_metric = "loss"
  specs = (Metric("loss", "per-example", value="loss", higher_is_better=False),)

  @classmethod
  def make(cls, settings: Any, header: Any) -> Matching:
    return cls()

  def _distances(self, forward: Any, batch: Any) -> jax.Array:
    found = forward({"text": {"words": batch["words"]}, "unet": {"sample": batch["sample"]}})
    return jnp.square(found["text"]["embedding"] - found["unet"]["embedding"]).mean(axis=-1)

  def loss(self, forward: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    return (self._distances(forward, batch) * batch["weight"]).sum(), batch["weight"].sum(), {}

  def predict(self, forward: Any, batch: Any) -> dict[str, Any]:
    return {"loss": self._distances(forward, batch), "weight": batch["weight"]}

  def per_example(self, predictions: Any) -> dict[str, np.ndarray]:
    return {"loss": predictions["loss"]}

  def metrics(self, predictions: Any) -> dict[str, float]:
    return {"loss": float(predictions["loss"].mean())}
