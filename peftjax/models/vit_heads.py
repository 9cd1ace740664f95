"""What ViT, DeiT and DINOv2 compute from their states: classes of images; and their checkpoints."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from peftjax.models.family import ENCODER, IMAGE_CLASSIFICATION, Architecture, Family
from peftjax.models.layers import Runtime
from peftjax.models.vit import PATCHES, ViTModel
from peftjax.models.vit_config import DEIT, DINOV2, REGISTERS, TABLES, VIT, ViTConfig, parse
from peftjax.sites import HasSites

TWO_TOKENS = dataclasses.replace(PATCHES, start=2)


class ViTForImageClassification(nn.Module, HasSites):
  """One label an image: "logits" [B, labels], beside the encoder's outputs.

  ViT and DeiT read the class token, DINOv2 the class token beside the mean of the patches.
  """

  config: ViTConfig
  runtime: Runtime
  sites: ClassVar = {"from_embeds": "model"}
  streams: ClassVar = (PATCHES,)

  def setup(self) -> None:
    setattr(self, self.config.model_type, self.encoder_class(self.config, self.runtime, add_pooling_layer=False))
    self.add_head()

  encoder_class: ClassVar[type[ViTModel]] = ViTModel

  @property
  def encoder(self) -> ViTModel:
    """The encoder, under its Hugging Face name."""
    found: ViTModel = getattr(self, self.config.model_type)
    return found

  @property
  def embedding_path(self) -> tuple[str, ...]:
    """Where the matrix that embeds patches stands in the tree."""
    return (self.config.model_type, "embeddings", "patch_embeddings", "projection")

  def add_head(self) -> None:
    """Creates the classifier."""
    self.classifier = self.runtime.dense(self.config.num_labels)

  def __call__(self, pixel_values: jax.Array, bool_masked_pos: jax.Array | None = None) -> dict[str, jax.Array]:
    outputs = self.from_embeds(self.encoder.embed(pixel_values, bool_masked_pos))
    return {**self.encoder.pooled(outputs), **self.head(outputs["last_hidden_state"])}

  def from_embeds(self, embeds: jax.Array) -> dict[str, jax.Array]:
    """The encoder after its embeddings; where a prompt enters."""
    return self.encoder.from_embeds(embeds)

  def head(self, hidden: jax.Array) -> dict[str, jax.Array]:
    """Logits from the encoder's states [B, tokens, hidden]."""
    read = hidden[:, 0]
    if self.config.is_dinov2:
      patches = hidden[:, 1 + self.config.num_register_tokens :]
      read = jnp.concatenate([read, patches.mean(axis=1)], axis=-1)
    return {"logits": self.classifier(read)}


class DeiTModel(ViTModel):
  """DeiT's encoder: a prompt enters behind both of its tokens."""

  streams: ClassVar = (TWO_TOKENS,)


class DeiTForImageClassification(ViTForImageClassification):
  """DeiT with a classifier on the class token."""

  encoder_class: ClassVar[type[ViTModel]] = DeiTModel
  streams: ClassVar = (TWO_TOKENS,)


class DeiTForImageClassificationWithTeacher(DeiTForImageClassification):
  """The mean of a classifier on the class token and of one on the distillation token, each given, too."""

  def add_head(self) -> None:
    """Creates both classifiers."""
    self.cls_classifier, self.distillation_classifier = (
      self.runtime.dense(self.config.num_labels),
      self.runtime.dense(self.config.num_labels),
    )

  def head(self, hidden: jax.Array) -> dict[str, jax.Array]:
    """Logits of both and their mean."""
    of_class, of_distillation = self.cls_classifier(hidden[:, 0]), self.distillation_classifier(hidden[:, 1])
    mean = (of_class + of_distillation) / 2
    return {"logits": mean, "cls_logits": of_class, "distillation_logits": of_distillation}


# Checkpoints ------------------------------------------------------------------------------------------------------

# What transformers calls the modules from version 5 on, and PEFT's adapters with it; checkpoints kept their names.
_ATTENTION_NOW = tuple(
  (rf"(.*)\battention\.attention\.{name}\b(.*)", rf"\1attention.{name[0]}_proj\2") for name in ("query", "key", "value")
)
_OUTPUT_NOW = ((r"(.*)\battention\.output\.dense\b(.*)", r"\1attention.o_proj\2"),)
_VIT_NOW = (
  (r"(.*)\bencoder\.layer\b(.*)", r"\1layers\2"),
  *_ATTENTION_NOW,
  *_OUTPUT_NOW,
  (r"(.*)\bintermediate\.dense\b(.*)", r"\1mlp.fc1\2"),
  (r"(.*\.\d+)\.output\.dense\b(.*)", r"\1.mlp.fc2\2"),
)


def _inputs(config: ViTConfig) -> dict[str, Any]:
  return {"pixel_values": jax.ShapeDtypeStruct((1, config.num_channels, *config.image_size), jnp.float32)}


def _stacks(config: ViTConfig) -> dict[str, int]:
  return {"encoder.layer": config.num_hidden_layers}


def _family(name: str, model_type: str, model: Any, heads: Mapping[str, tuple[Any, tuple[str, ...]]]) -> Family:
  return Family(
    model_types=(model_type,),
    table=TABLES[model_type],
    parse=parse,
    architectures={
      f"{name}Model": Architecture(model, ENCODER),
      **{
        f"{name}{ending}": Architecture(build, IMAGE_CLASSIFICATION, model_type, head)
        for ending, (build, head) in heads.items()
      },
    },
    stacks=_stacks,
    inputs=_inputs,
    rename=((r"(.*layer_scale\d)\.scale", r"\1.lambda1"),),
    renamed_modules=_VIT_NOW if model_type in (VIT, DEIT) else (*_ATTENTION_NOW, *_OUTPUT_NOW),
    unused=(
      r"(.*\.)?pooler\.dense\.(weight|bias)",
      r"(cls_|distillation_)?classifier\..*",
      r"decoder\..*",
      *((r"(.*\.)?embeddings\.mask_token",) if model_type in (VIT, DEIT) else ()),
    ),
  )


_CLASSES = {"ForImageClassification": (ViTForImageClassification, ("classifier",))}
_OF_DEIT = {
  "ForImageClassification": (DeiTForImageClassification, ("classifier",)),
  "ForImageClassificationWithTeacher": (
    DeiTForImageClassificationWithTeacher,
    ("cls_classifier", "distillation_classifier"),
  ),
}
FAMILIES = (
  _family("ViT", VIT, ViTModel, _CLASSES),
  _family("DeiT", DEIT, DeiTModel, _OF_DEIT),
  _family("Dinov2", DINOV2, functools.partial(ViTModel, add_pooling_layer=False), _CLASSES),
  _family("Dinov2WithRegisters", REGISTERS, functools.partial(ViTModel, add_pooling_layer=False), _CLASSES),
)
