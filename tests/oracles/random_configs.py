"""Random tiny configs of every family: the same config.json and weights given to transformers or diffusers and to us.

    python -m tests.oracles.random_configs --families=llama,bert --cases=300

prints one JSON line a family: how many came out equal, how many were refused, here and by transformers.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

import peftjax
from peftjax.errors import UserError
from peftjax.models.layers import Runtime
from tests.oracles.config_draws import FAMILIES, PADDING, Draw
from tests.oracles.config_draws_senses import SENSES
from tests.oracles.decoders import token_batch

TOLERANCE = 1e-5
LEAST_ROUNDED = 1e-3  # which no rounding exceeds here
_COMPARED = (
  "logits", "start_logits", "end_logits", "last_hidden_state", "pooler_output", "pred_boxes", "cls_logits",
  "distillation_logits", "text_embeds", "image_embeds", "logits_per_image", "logits_per_text", "sample",
)  # fmt: skip
_EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
_RESAMPLED = ("ViT", "DeiT", "CLIP")  # which resample their positions if they are asked to

Outputs = dict[str, np.ndarray]


def run_case(family: str, seed: int) -> tuple[str, str]:
  """("equal" | "refused" | "transformers refuses", what was said) of one config; raises on anything else."""
  name, make, inputs_of = SENSES[family] if family in SENSES else (*FAMILIES[family], _inputs)
  draw = Draw(f"{family} {seed}")
  ending, given, change = make(draw, name)
  with tempfile.TemporaryDirectory(prefix="random-config-") as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    found = _theirs(name, ending, given, change, inputs_of, Path(folder), seed)
    if isinstance(found, str):
      with contextlib.suppress(UserError):  # a config that it takes all the same must at least load
        peftjax.load(folder, runtime=Runtime(scan_layers=draw.sometimes(0.5)))
      return "transformers refuses", found
    inputs, expected, exact = found
    try:
      ours = peftjax.load(folder, runtime=Runtime(scan_layers=draw.sometimes(0.5)))
      outputs = ours(**inputs)
    except UserError as error:
      return "refused", str(error)
    for key, value in expected.items():
      what = f"{family} {seed} {ending} {key} of {given}"
      _compare(what, np.asarray(outputs[key]), value, lambda key=key: exact()[key], inputs)
  return "equal", ending


def _theirs(
  name: str,
  ending: str,
  given: dict[str, Any],
  change: Callable[[dict[str, Any]], None],
  inputs_of: Callable[[Any, str, int], Outputs],
  folder: Path,
  seed: int,
) -> tuple[dict[str, np.ndarray], Outputs, Callable[[], Outputs]] | str:
  """(inputs, outputs, outputs in float64) of transformers' model, written to the folder; or what it says against the
  config."""
  torch.manual_seed(seed)
  try:
    if hasattr(diffusers, name):
      model_class, reading = getattr(diffusers, name), {}
      made = model_class(**given).eval()
    else:
      text = "Text" if name == "Gemma3" and "LM" not in ending else ""
      model_class, reading = getattr(transformers, f"{name}{text}{ending}"), _EAGER
      made = model_class(model_class.config_class(**given)).eval()
    with torch.no_grad():
      for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    made.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    change(written)
    (folder / "config.json").write_text(json.dumps(written))
    made = model_class.from_pretrained(folder, **reading).eval()
    inputs = inputs_of(made.config, ending, seed)
    is_resampled = name in _RESAMPLED and "pixel_values" in inputs and _is_of_other_size(made.config, inputs)
    how = {"interpolate_pos_encoding": True} if is_resampled else {}
    with torch.no_grad():
      outputs = made(**_tensors(inputs), **how)
  except Exception as error:  # whatever transformers raises is its way of refusing
    return f"{type(error).__name__}: {error}"[:200]
  keys = [key for key in _COMPARED if outputs.get(key) is not None]

  def exact() -> Outputs:
    if reading and getattr(made.config, "attn_logit_softcapping", None) is None:
      made.set_attn_implementation("sdpa")  # the eager softmax is in float32, where float64's mask is infinite
    with torch.no_grad():
      whole = made.double()(**_tensors(inputs, is_double=True), **how)
    return {key: whole[key].numpy() for key in keys}

  return inputs, {key: outputs[key].numpy() for key in keys}, exact


def _is_of_other_size(config: Any, inputs: Mapping[str, Any]) -> bool:
  size = getattr(config, "vision_config", config).image_size
  return tuple(inputs["pixel_values"].shape[2:]) != (tuple(size) if isinstance(size, tuple | list) else (size, size))


def _tensors(inputs: Mapping[str, Any], is_double: bool = False) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in inputs.items():
    made = _tensors(value, is_double) if isinstance(value, dict) else torch.tensor(value)
    found[key] = made.double() if is_double and isinstance(made, torch.Tensor) and made.is_floating_point() else made
  return found


def _inputs(config: Any, ending: str, seed: int) -> Outputs:
  draw = Draw(f"inputs {seed}")
  pad = PADDING if config.pad_token_id is None else config.pad_token_id
  is_decoder = not hasattr(config, "type_vocab_size") and not config.is_encoder_decoder
  ids, mask = token_batch(
    length=draw.randint(5, 12), vocabulary=config.vocab_size, seed=seed, padding=draw.choice(["right", "left"])
  )
  ids = np.where(mask, np.where(ids == pad, 5, ids), pad)
  inputs = {"input_ids": ids} if draw.sometimes(0.1) and not is_decoder else {"input_ids": ids, "attention_mask": mask}
  if hasattr(config, "type_vocab_size") and draw.sometimes(0.5):
    inputs["token_type_ids"] = np.random.default_rng(seed).integers(0, config.type_vocab_size, ids.shape)
  if config.is_encoder_decoder and ending == "ForSequenceClassification":
    inputs["input_ids"] = np.where(ids == config.eos_token_id, 4, ids)
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    inputs["input_ids"][np.arange(len(ids)), last] = config.eos_token_id
  elif config.is_encoder_decoder:
    inputs["decoder_input_ids"], inputs["decoder_attention_mask"] = token_batch(
      length=draw.randint(1, 9) + 4, vocabulary=config.vocab_size, seed=seed + 1
    )
  return inputs


def _compare(
  what: str,
  ours: np.ndarray,
  theirs: np.ndarray,
  exact: Callable[[], np.ndarray],
  inputs: Mapping[str, np.ndarray],
) -> None:
  """Raises AssertionError unless two outputs are equal to TOLERANCE, or ours is as near to float64 as transformers':
  a layer norm of two features makes any difference of roundings a large one.
  """
  if ours.shape != theirs.shape:
    raise AssertionError(f"{what}: shape {ours.shape}, transformers' {theirs.shape}")
  mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
  chosen = slice(None)
  if mask is not None and theirs.shape[:2] == mask.shape and theirs.ndim == 3:
    chosen = mask.astype(bool)
  ours, theirs = ours[chosen], theirs[chosen]
  scale = max(1.0, np.abs(theirs).max())
  off = np.abs(ours - theirs).max() / scale
  if off < TOLERANCE or (np.isnan(ours) & np.isnan(theirs)).all():
    return
  whole = exact()[chosen]
  if not off < LEAST_ROUNDED or not np.abs(ours - whole).max() <= 4 * np.abs(theirs - whole).max():
    raise AssertionError(f"off by {off:.1e} of {scale:.1e}: {what}")


def main() -> None:
  """Runs cases and prints counts; exits with 1 if any came out otherwise."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--families", default=",".join([*FAMILIES, *SENSES]))
  parser.add_argument("--cases", type=int, default=300)
  parser.add_argument("--first", type=int, default=0, help="the first seed")
  flags = parser.parse_args()
  failed = False
  for family in flags.families.split(","):
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for seed in range(flags.first, flags.first + flags.cases):
      try:
        kind, said = run_case(family, seed)
      except Exception as error:
        kind, said = "wrong", f"{seed}: {type(error).__name__}: {error}"[:700]
      counts[kind] += 1
      if kind != "equal":
        reasons[f"{kind}: {said}"[:700] if kind == "wrong" else f"{kind}: {said[:90]}"] += 1
    failed |= counts["wrong"] > 0
    print(json.dumps({"family": family, **counts, "reasons": reasons.most_common(30)}), flush=True)
  raise SystemExit(failed)


if __name__ == "__main__":
  main()
