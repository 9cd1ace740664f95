"""A Hugging Face folder from a DINOv2 encoder that was exported to ONNX by torch.

The exporter keeps most parameters under their names. The kernels of linear layers it transposes to [in, out] and names
by numbers, so they are found by the operations that read them; positions it divides into the class's and the patches'.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftjax.errors import UserError
from peftjax.models.onnx_file import OnnxFile, read_onnx
from peftjax.models.pretrained import CONFIG, WEIGHTS
from peftjax.models.tensor_files import write_tensors
from peftjax.outputs import new_folder

HEAD_SIZE = 64  # of all published sizes of DINOv2; the graph's shapes do not say it
PREFIX = "backbone."
PROCESSOR = {
  "image_processor_type": "BitImageProcessor",
  "do_resize": True,
  "size": {"shortest_edge": 256},
  "resample": 3,
  "do_center_crop": True,
  "crop_size": {"height": 224, "width": 224},
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": [0.485, 0.456, 0.406],
  "image_std": [0.229, 0.224, 0.225],
  "do_convert_rgb": True,
}


def is_onnx(folder: Path) -> bool:
  """Whether a folder holds an ONNX file and no model in Hugging Face's format."""
  return folder.is_dir() and not (folder / CONFIG).is_file() and any(folder.glob("*.onnx"))


def encoder_folder(folder: Path, cache: Path) -> Path:
  """The model folder of the ONNX file in `folder`, made in `cache` the first time.

  Raises:
    UserError: the file holds no DINOv2 encoder.
  """
  file = sorted(folder.glob("*.onnx"))[0]
  with file.open("rb") as stream:
    made = cache / f"{file.stem}-{hashlib.file_digest(stream, 'sha256').hexdigest()[:16]}"
  if not made.is_dir():
    tensors = tensors_of(read_onnx(file), str(file))
    with new_folder(made) as temporary:
      write_tensors(temporary / WEIGHTS, tensors)
      for name, content in ((CONFIG, config_of(tensors)), ("preprocessor_config.json", PROCESSOR)):
        (temporary / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
  return made


def tensors_of(onnx: OnnxFile, where: str) -> dict[str, np.ndarray]:
  """The encoder's tensors under Hugging Face's names and in its layouts.

  Raises:
    UserError: a part of it is missing.
  """
  found = {name.removeprefix(PREFIX): one for name, one in onnx.tensors.items() if name.startswith(PREFIX)}
  if "embeddings.cls_token" not in found:
    raise UserError(f"{where}: no {PREFIX}embeddings.cls_token; an encoder in DINOv2's layout was expected")
  hidden = found["embeddings.cls_token"].shape[-1]
  places: list[np.ndarray] = []
  for node in onnx.nodes:
    read = [onnx.tensors[name] for name in node.inputs if name in onnx.tensors]
    module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
    if node.kind == "MatMul" and read and module.startswith(PREFIX):
      found[f"{module.removeprefix(PREFIX)}.weight"] = read[0].T
    elif module == f"{PREFIX}embeddings":
      places += [one for one in read if one.ndim == 3 and one.shape[-1] == hidden]
  patches = [one for one in places if one.shape[1] > 1]
  class_place = [one for one in places if one.shape[1] == 1 and not np.array_equal(one, found["embeddings.cls_token"])]
  if not patches or not class_place:
    raise UserError(f"{where}: no learned positions; an encoder in DINOv2's layout was expected")
  found["embeddings.position_embeddings"] = np.concatenate([class_place[0], patches[0]], axis=1)
  return {name: np.ascontiguousarray(one, np.float32) for name, one in sorted(found.items())}


def config_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """config.json, from the shapes."""
  hidden, channels, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
  side = round((tensors["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
  layers = {int(match[1]) for name in tensors if (match := re.match(r"encoder\.layer\.(\d+)\.", name))}
  return {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": hidden,
    "num_hidden_layers": len(layers),
    "num_attention_heads": hidden // HEAD_SIZE,
    "mlp_ratio": tensors["encoder.layer.0.mlp.fc1.weight"].shape[0] // hidden,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "image_size": side * patch,
    "patch_size": patch,
    "num_channels": channels,
    "qkv_bias": True,
    "use_mask_token": False,
    "use_swiglu_ffn": False,
  }
