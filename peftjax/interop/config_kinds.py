"""What the values of adapter_config.json and peftjax.json may be; ranges are the methods' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftjax.interop.formats.base import Config
from peftjax.kinds import FLAG, NAME, SETTINGS, Kind, either, list_of, number, value_of, whole

_MOST = 2**20  # names of modules, or tokens
_NAMES = list_of(NAME, _MOST, "names")
_COUNT = whole(0, 2**31 - 1)
_WORD = either(FLAG, NAME)  # an initialisation: true, false or its name
_KINDS: dict[str, Kind] = {
  "adapter_layers": _COUNT,
  "adapter_len": _COUNT,
  "base_model_name_or_path": NAME,
  "exclude_modules": either(NAME, _NAMES),
  "feedforward_modules": either(NAME, _NAMES),
  "inference_mode": FLAG,
  "layers_pattern": either(NAME, _NAMES),
  "layers_to_transform": either(_COUNT, list_of(_COUNT, what="them")),
  "modules_to_save": _NAMES,
  "num_attention_heads": _COUNT,
  "num_layers": _COUNT,
  "num_transformer_submodules": _COUNT,
  "num_virtual_tokens": _COUNT,
  "peft_type": NAME,
  "random_seed": _COUNT,
  "target_modules": either(NAME, _NAMES),
  "task_type": NAME,
  "token_dim": _COUNT,
  "token_indices": list_of(_COUNT, _MOST),
  "total_step": number(),
  "trainable_token_indices": either(list_of(_COUNT, _MOST), SETTINGS),
}
_OURS: dict[str, Kind] = {
  "architecture": NAME,
  "base_sha256": NAME,
  "id2label": SETTINGS,
  "method": NAME,
  "settings": SETTINGS,
}


def check_config(config: Mapping[str, Any], defaults: Config, where: str) -> None:
  """Checks the types in an adapter_config.json; null stands for the default anywhere.

  Args:
    defaults: the format's; a key that is not in the table here has the type of its default.

  Raises:
    UserError: a value of another type.
  """
  for key, value in config.items():
    kind = _KINDS.get(key) or _kind_like(key, defaults.get(key))
    if kind is not None and value is not None:
      value_of(where, key, value, kind)


def _kind_like(key: str, default: Any) -> Kind | None:
  if key.startswith("init_") and isinstance(default, bool | str):
    return _WORD
  if isinstance(default, bool):
    return FLAG
  if isinstance(default, int | float):
    return number()
  return next((kind for cls, kind in ((str, NAME), (dict, SETTINGS)) if isinstance(default, cls)), None)


def check_ours(ours: Mapping[str, Any], where: str) -> None:
  """Checks the types in a peftjax.json.

  Raises:
    UserError: a value of another type.
  """
  for key, kind in _OURS.items():
    if ours.get(key) is not None:
      value_of(where, key, ours[key], kind)
  for key, label in (ours.get("id2label") or {}).items():
    value_of(where, f"id2label[{key!r}]", label, NAME)
