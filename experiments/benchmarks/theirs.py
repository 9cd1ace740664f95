"""The peers' side: transformers and PEFT on torch, the same shapes, batches, dtypes and optimizer.

What trains is float32 and products are computed in bfloat16 under autocast, where bfloat16 is asked for; a frozen base
is stored in bfloat16. Gradients are clipped by their norm and AdamW is the fused one on an accelerator, as the Trainer
of transformers sets them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from experiments.benchmarks.shapes import Shape


class Theirs:
  """A training loop's body.

  Args:
    shape: model and batch.
    method: "full", or "lora" of rank 8 on all linear modules of the layers.
    precision: "float32" or "bfloat16".
    compiled: "" (eager), "whole" (`torch.compile` of the model), or "layers" (each layer's forward is compiled, once
      for all layers: torch's recipe for short compilation).
  """

  def __init__(self, shape: Shape, method: str, precision: str, compiled: str = ""):
    self.shape, self.method, self.precision, self.compiled = shape, method, precision, compiled
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self._loaded = _packages()

  def start(self) -> None:
    """Makes model, optimizer and batch, with everything on the device."""
    torch.set_float32_matmul_precision("highest" if self.precision == "float32" else "high")
    stored = torch.bfloat16 if self.precision == "bfloat16" and self.method != "full" else torch.float32
    torch.manual_seed(0)
    with self.device:
      model = _model(self.shape, stored)
    if self.method == "lora":
      peft, _ = self._loaded
      kind = {"text_classification": "SEQ_CLS", "causal_lm": "CAUSAL_LM", "seq2seq_lm": "SEQ_2_SEQ_LM"}
      targets = self.shape.peer_targets or self.shape.targets_of_lora
      head = ["classifier"] if self.shape.labels else None
      settings = peft.LoraConfig(
        r=8, lora_alpha=8, target_modules=list(targets), task_type=kind.get(self.shape.task), modules_to_save=head
      )
      model = peft.get_peft_model(model, settings)
    self.model = model.to(self.device).train()
    trained = [leaf for leaf in self.model.parameters() if leaf.requires_grad]
    on_gpu = self.device.type == "cuda"
    self.optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=on_gpu or None)
    self._trained = trained
    if self.compiled == "layers":
      for layers in _layer_lists(self.model):
        for layer in layers:
          layer.compile(dynamic=False)
    self._call: Any = torch.compile(self.model, dynamic=False) if self.compiled == "whole" else self.model
    given = {name: torch.as_tensor(array).to(self.device) for name, array in self.shape.batch().items()}
    whole, real = ("input_ids", "attention_mask", "labels"), ("pixel_values", "input_features")
    self._batch = {name: given[name].long() for name in whole if name in given}
    self._batch |= {name: given[name] for name in real if name in given}

  def run(self) -> Any:
    """One update; the result need not be ready."""
    low = self.precision == "bfloat16"
    amp: Any = torch.autocast(self.device.type, torch.bfloat16) if low else contextlib.nullcontext()
    with amp:
      loss = self._call(**self._batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  def wait(self, result: Any) -> float:
    """The loss, when it is there."""
    return float(result)

  def peak_bytes(self) -> int | None:
    """Most bytes that tensors took on the device; None on a CPU."""
    return int(torch.cuda.max_memory_allocated()) if self.device.type == "cuda" else None


def _packages() -> tuple[Any, Any]:
  import peft
  import transformers

  return peft, transformers


def _model(shape: Shape, dtype: torch.dtype) -> Any:
  import transformers

  config = transformers.AutoConfig.for_model(**{k: v for k, v in shape.hf_config.items() if k != "architectures"})
  config.use_cache = False
  heads = {
    "text_classification": transformers.AutoModelForSequenceClassification,
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
    "image_classification": transformers.AutoModelForImageClassification,
    "speech_recognition": transformers.AutoModelForSpeechSeq2Seq,
  }
  return heads[shape.task].from_config(config, dtype=dtype)


def _layer_lists(model: Any) -> list[Any]:
  """The lists of layers, outermost first."""
  lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
  return [one for one in lists if type(one[0]).__name__.endswith(("Layer", "Block"))]
