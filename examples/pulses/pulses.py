"""Pulses of a detector: examples of several lengths, a number to learn, a model of one's own.

peftjax train --config=examples/pulses/pulses.py --workdir=runs/pulses
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import peftjax
from peftjax.config import default
from peftjax.data import Input
from peftjax.data.batching import bucket_lengths
from peftjax.data.sources import Dataset
from peftjax.tasks import Metric, Task

SPLITS = {"train": 256, "validation": 64, "test": 64}
WIDTH = 16


@dataclasses.dataclass(frozen=True)
class Pulses:
  """The examples of one split: `charges`, float32 [3 to 30], and `label`, the energy that they tell of."""

  split: str

  def __len__(self):
    return SPLITS[self.split]

  def __getitem__(self, index):
    random = np.random.default_rng([list(SPLITS).index(self.split), index])
    charges = random.gamma(2.0, size=random.integers(3, 31)).astype(np.float32)
    return {"charges": charges, "label": float(np.sqrt(charges).sum())}


def pulses(rest, named):
  """``data.name=pulses:pulses``"""
  del rest, named
  return Dataset(
    name="pulses",
    splits=SPLITS,
    fields=("charges", "label"),
    label_kind="number",
    identity={"pulses": 1},
    read=Pulses,
  )


class Charges(Input):
  """Rows of 8, 16 or `input.most` pulses; those that an example lacks are -1, and not `seen`."""

  settings = {"most": 32}
  fills = {"charges": -1.0}
  unit = "pulse"

  @property
  def buckets(self):
    return bucket_lengths((8, 16), self.options.most)

  @property
  def length_setting(self):
    return f"input.most={self.options.most}"

  def length(self, example):
    return len(example["charges"])

  def spec(self, rows, length):
    kinds = {"charges": np.float32, "seen": np.bool_}
    return {name: jax.ShapeDtypeStruct((rows, length), np.dtype(kind)) for name, kind in kinds.items()}

  def encode(self, example, rng):
    charges = example["charges"][: self.options.most]
    return {"charges": charges, "seen": np.ones(len(charges), bool)}

  def places(self, batch):
    return int(batch["seen"].sum())


class Energy(Task):
  """Squared error of the energy."""

  name = "pulses:Energy"
  head = ""
  fields = ("charges", "label")
  input = "pulses:Charges"
  label_names, num_labels = (), 1
  main_metric = "off"
  specs = (
    Metric("loss", "per-example", value="loss", higher_is_better=False),
    Metric("off", "ratio", share=True, higher_is_better=False, numerator=("error",), denominator=("label",)),
    Metric("spearman", "corpus"),
  )

  @classmethod
  def make(cls, settings, header):
    del settings, header
    return cls()

  def outputs(self, batch):
    return {"": batch["weight"].shape}

  def loss(self, forward, batch, key):
    del key
    found = self.predict(forward, batch)
    return (found["loss"] * batch["weight"]).sum(), batch["weight"].sum(), {}

  def predict(self, forward, batch):
    found = forward({"charges": batch["charges"], "seen": batch["seen"]})
    return {"energy": found, "labels": batch["labels"], "loss": (found - batch["labels"]) ** 2}

  def per_example(self, predictions):
    energy, label = predictions["energy"], predictions["labels"]
    return {"prediction": energy, "label": label, "error": np.abs(energy - label)}

  def metrics(self, predictions):
    rows = self.per_example(predictions)
    return {
      "loss": float(predictions["loss"].mean()),
      "off": float(rows["error"].sum() / rows["label"].sum()),
      "spearman": float(stats.spearmanr(rows["prediction"], rows["label"]).statistic),
    }


def energy(params, charges, seen):
  """charges [B, n], seen [B, n] -> energy [B]: what each pulse adds, summed."""
  h = jnp.tanh(charges[..., None] @ params["up"]["kernel"] + params["up"]["bias"])
  h = jnp.where(seen[..., None], jax.nn.relu(h @ params["mix"]["kernel"]), 0.0)
  return (h.sum(1) @ params["head"]["kernel"])[:, 0]


def net(config):
  """``model.path=pulses:net``: one base for all seeds; the head trains with every method."""
  del config
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = {"up": (1, WIDTH), "mix": (WIDTH, WIDTH), "head": (WIDTH, 1)}
  params = {
    name: {"kernel": jax.random.normal(key, shape) * shape[0] ** -0.5}
    for key, (name, shape) in zip(keys, shapes.items())
  }
  params["up"]["bias"] = jax.random.normal(keys[3], (WIDTH,))
  inputs = {"charges": jax.ShapeDtypeStruct((2, 8), jnp.float32), "seen": jax.ShapeDtypeStruct((2, 8), jnp.bool_)}
  return peftjax.wrap(energy, params, example_inputs=inputs, head="head")


def get_config():
  """Full fine-tuning; the study sets LoRA beside it."""
  config = default()
  config.model.path, config.data.name, config.task.name = "pulses:net", "pulses:pulses", "pulses:Energy"
  config.method.name = "full"
  config.optim.learning_rate = 1e-2
  config.train.update({"batch_size": 32, "epochs": 20.0})
  config.compare.methods = {
    "full": {},
    "lora": {"method": {"rank": 4, "targets": "all-linear"}, "optim": {"learning_rate": 2e-2}},
  }
  config.compare.baseline = ""
  config.compare.timing_rounds = 0
  return config
