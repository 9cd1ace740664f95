"""Textual inversion (Gal et al. 2023): one new token whose embedding alone is learned; a pipeline's token, in and out.

    python -m peftjax.textual_inversion PIPELINE OUT --token="<dog>" --like=dog   # PIPELINE with one token more
    peftjax train --config.model.path=OUT --config.method.name=trainable_tokens \
      --config.method.targets="('text_encoder.*token_embedding',)" --config.method.token_indices="(49408,)" ...
    peftjax export --workdir=RUN --format=embeds --out=FOLDER                        # learned_embeds.safetensors
    python -m peftjax.textual_inversion PIPELINE OUT --embeds=FOLDER/learned_embeds.safetensors

The file is that of diffusers' train_textual_inversion.py, token -> vector [hidden], which its `load_textual_inversion`
reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tokenizers import AddedToken

from peftjax import masks
from peftjax.composite import components
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.data.inputs.tokenizer_folder import read_tokenizer
from peftjax.diffusion.folder import INDEX, has_conditions
from peftjax.errors import UserError
from peftjax.files import read_json, write_text
from peftjax.loading import is_index_folder, load
from peftjax.methods.trainable_tokens import TrainableTokens
from peftjax.model import Model
from peftjax.models.tensor_files import Checkpoint, write_tensors
from peftjax.outputs import new_folder, written
from peftjax.vocabulary import resized, table_path

FILE, KIND = "learned_embeds.safetensors", "embeds"
_TEXT = "text_encoder"


def extend(folder: Path, out: Path, embeds: Mapping[str, np.ndarray]) -> dict[str, int]:
  """Writes a pipeline with more tokens than another one.

  Args:
    folder: the pipeline's.
    out: a folder that is not there yet.
    embeds: new token -> its vector [hidden].

  Returns:
    token -> its id.

  Raises:
    UserError: no pipeline, a token that there is or that is no word, a vector of another size, or `out` is there.
  """
  if not is_index_folder(folder) or not (folder / _TEXT / "config.json").is_file():
    raise UserError(f"{folder} is no pipeline's folder with the component {_TEXT!r}")
  if has_conditions(folder):
    raise UserError(f"{folder}: its denoiser reads two text encoders; a new token is added to one alone here")
  if out.exists():
    raise UserError(f"{out} is there already; choose another folder")
  tokens = folder / "tokenizer"
  fast = read_tokenizer(tokens if tokens.is_dir() else folder).fast
  model = load(folder / _TEXT)
  path, rows = table_path(model), int(model.hf_config["vocab_size"])
  width = masks.flatten(model.params)[path].shape[1]
  for token, vector in embeds.items():
    if fast.token_to_id(token) is not None:
      raise UserError(f"{folder}: the tokenizer has the token {token!r} already")
    if vector.shape != (width,):
      raise UserError(f"{token!r}: a vector of shape {list(vector.shape)}; the text encoder's are [{width}]")
  # As transformers adds them: case is no difference, as in all that CLIP's tokenizer reads.
  fast.add_tokens([AddedToken(token, normalized=True) for token in embeds])
  ids = {}
  for token in embeds:
    found = fast.encode(token, add_special_tokens=False).ids
    if len(found) != 1 or found[0] != fast.token_to_id(token) or token != token.strip():
      raise UserError(f"{token!r} is no token: the tokenizer reads {len(found)} others, or spaces about it; "
                      "expected a word of its own, such as <dog>")  # fmt: skip
    ids[token] = found[0]
  model = resized(model, max(rows, fast.get_vocab_size(with_added_tokens=True)))
  flat = dict(masks.flatten(model.params))
  chosen = jnp.asarray(list(ids.values()))
  flat[path] = flat[path].at[chosen].set(jnp.asarray(np.stack([*embeds.values()]), flat[path].dtype))
  with new_folder(out) as temporary:
    for entry in sorted(folder.iterdir()):
      if entry.is_dir() and entry.name != _TEXT:
        shutil.copytree(entry, temporary / entry.name, ignore=_hidden)
    dataclasses.replace(model, params=masks.unflatten(flat)).save(temporary / _TEXT)
    settings = temporary / "tokenizer"
    settings.mkdir(exist_ok=True)
    fast.save(str(settings / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):  # without the new tokens
      (settings / name).unlink(missing_ok=True)
    write_text(temporary / INDEX, json.dumps(read_json(folder / INDEX), indent=2) + "\n")
  return ids


def _hidden(folder: str, names: Sequence[str]) -> list[str]:
  del folder
  return [name for name in names if name.startswith(".")]


def vector_of(folder: Path, text: str) -> np.ndarray:
  """float32 [hidden]: the embedding that a token like a word begins with, the mean of the word's tokens.

  Raises:
    UserError: the text is nothing to the tokenizer.
  """
  (ids,) = Pipeline(folder).tokenizer.encode_bare([text])
  if not ids:
    raise UserError(f"--like={text!r}: the tokenizer makes no token of it")
  model = load(folder / _TEXT)
  table = np.asarray(masks.flatten(model.params)[table_path(model)], np.float32)
  found: np.ndarray = table[ids].mean(axis=0)
  return found


def learned(model: Model) -> dict[int, np.ndarray]:
  """Token's id -> float32 [hidden], of a trained pipeline.

  Raises:
    UserError: no embeddings of tokens train in it.
  """
  found: dict[int, np.ndarray] = {}
  for one in model.bound:
    if isinstance(one.method, TrainableTokens):
      flat = masks.flatten(model.params)
      for site in one.sites:
        rows = flat.get(".".join((*site.path, "token_rows")))
        if rows is not None and site.path[0] == _TEXT:
          found |= dict(zip(one.method.token_indices, np.asarray(rows, np.float32)))
  if not found or _TEXT not in components(model):
    raise UserError(f"no embeddings of tokens of {_TEXT!r} were trained; expected method trainable_tokens on it")
  return found


def save(model: Model, folder: str | Path, overwrite: bool = False) -> None:
  """Writes ``learned_embeds.safetensors`` of a trained pipeline into a folder."""
  family = model.family
  root = getattr(family, "folder", None)
  if root is None:
    raise UserError(f"{FILE}: the pipeline came from no folder, whose tokenizer names the tokens")
  tokens = read_tokenizer(root / "tokenizer").fast
  vectors = {str(tokens.id_to_token(number)): row for number, row in learned(model).items()}
  with written(folder, [FILE], KIND, overwrite=overwrite) as temporary:
    write_tensors(temporary / FILE, vectors)


def read(path: Path) -> dict[str, np.ndarray]:
  """Token -> its vector, of a file as diffusers writes it.

  Raises:
    UserError: no such file, or one with something else.
  """
  if path.suffix != ".safetensors" or not path.is_file():
    raise UserError(f"--embeds={path}: expected a file of safetensors, such as {FILE}")
  held = Checkpoint([path])
  found = {}
  for token in held.keys():
    vectors = held.read(token).astype(np.float32)
    if token == "emb_params":
      raise UserError(f"{path}: 'emb_params' is what other programs call a vector whose token is the file's name; "
                      "write it under its token, such as <dog>")  # fmt: skip
    if not 1 <= vectors.ndim <= 2 or not np.isfinite(vectors).all():
      raise UserError(f"{path}: {token!r} has shape {list(vectors.shape)}, or values that are not finite; expected a "
                      "vector [hidden]")  # fmt: skip
    found[token] = vectors.reshape(-1, vectors.shape[-1])
  if not found:
    raise UserError(f"{path} holds no token")
  for token, rows in found.items():
    if len(rows) != 1:
      raise UserError(f"{path}: {token!r} has {len(rows)} vectors; one token stands for one here")
  return {token: rows[0] for token, rows in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
  """Writes a pipeline with one token more; 2 with one line on a user's mistake."""
  parser = argparse.ArgumentParser(prog="python -m peftjax.textual_inversion", description=__doc__.split("\n")[0])
  parser.add_argument("pipeline", type=Path)
  parser.add_argument("out", type=Path)
  parser.add_argument("--token", default="", help="the new token, such as <dog>")
  parser.add_argument("--like", default="", help="the word whose embedding it begins with")
  parser.add_argument("--embeds", default="", help="a file of learned embeddings, in place of both")
  flags = parser.parse_args(arguments)
  try:
    if bool(flags.embeds) == bool(flags.token and flags.like):
      raise UserError("expected --token and --like, or --embeds")
    given = read(Path(flags.embeds)) if flags.embeds else {flags.token: vector_of(flags.pipeline, flags.like)}
    for token, number in extend(flags.pipeline, flags.out, given).items():
      print(f"{token} {number}")
  except UserError as error:
    print(f"peftjax: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
