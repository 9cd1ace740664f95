"""Pictures of a class that a pipeline makes itself before it learns a subject, as diffusers' train_dreambooth.py does.

Of ``data.name=pictures:DOG,DOGS`` with ``input.num_class_images=200``, what DOGS lacks of 200 pictures is sampled under
`input.prior_caption`. A picture's file is written when it is finished and named by its seed, so that a generation that
is cut off goes on with the next one and ends with the same pictures.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from peftjax.data.inputs.captioned_images import CaptionedImages
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.data.packages import only_one
from peftjax.data.sources.files import SPLIT_FILES
from peftjax.data.sources.folder import table_of
from peftjax.data.sources.media import IMAGES, medium_of
from peftjax.data.sources.pictures import TABLES, check_apart
from peftjax.errors import UserError
from peftjax.files import write_bytes
from peftjax.image_generation import make_sampling, plan_of, sample
from peftjax.loading import folder_of, load
from peftjax.train import assemble

log = logging.getLogger(__name__)

STEPS, GUIDANCE = 50, 7.5  # diffusers' own
_BATCH = 4
_PREFIX = "class-"


def make(config: ConfigDict) -> list[str]:
  """The names of the pictures that were made: none where there are enough, or where none are asked for.

  Raises:
    UserError: there is no folder or no caption to make them for; the pipeline cannot be sampled from.
  """
  wanted = CaptionedImages.class_images(config.input.get("num_class_images", 0))
  if not wanted:
    return []
  kind, _, rest = str(config.data.name).partition(":")
  _, comma, path = rest.partition(",")
  if kind != "pictures" or not comma or not path:
    raise UserError(f"input.num_class_images={wanted}: expected data.name=pictures:SUBJECT,CLASS, "
                    f"not {str(config.data.name)!r}")  # fmt: skip
  caption = str(config.input.get("prior_caption", ""))
  if not caption:
    raise UserError("input.num_class_images: input.prior_caption is empty; set it, such as 'a photo of a dog'")
  subject, folder = Path(rest.partition(",")[0]), Path(path).expanduser()
  check_apart(subject, folder)
  divided = any((folder / name).is_dir() for name in SPLIT_FILES["train"])
  if folder.is_dir() and (divided or table_of(folder, TABLES) is not None):
    return []  # what the table lists, or what lies in its split, is all that is read
  folder.mkdir(parents=True, exist_ok=True)
  with only_one(folder.parent / f".{folder.name}.lock"):
    missing = _missing(folder, wanted)
    if missing:
      log.warning("%s: %d pictures of %r are made", folder, len(missing), caption)
      _sample(config, folder, caption, missing)
  return [_name(seed) for seed in missing]


def _name(seed: int) -> str:
  return f"{_PREFIX}{seed:05}.png"


def _missing(folder: Path, wanted: int) -> list[int]:
  """The seeds of the pictures that are not there yet; a user's own pictures count."""
  there = {entry.name for entry in folder.rglob("*") if medium_of(entry.name) is IMAGES}
  own = sum(not name.startswith(_PREFIX) for name in there)
  return [seed for seed in range(wanted - own) if _name(seed) not in there]


def _sample(config: ConfigDict, folder: Path, caption: str, seeds: list[int]) -> None:
  pipeline = folder_of(config.model.path)
  plan = plan_of(pipeline, "ddim", STEPS, GUIDANCE, int(config.input.get("size", 0)))
  model = load(pipeline, dtype=config.model.dtype, runtime=assemble.runtime(config),
               component_dtypes=assemble.component_dtypes(config))  # fmt: skip
  run = make_sampling(model.forward, plan)
  for start in range(0, len(seeds), _BATCH):
    some = seeds[start : start + _BATCH]
    pictures = sample(run, model.params, plan, Pipeline(pipeline), [caption] * len(some), some, batch_size=_BATCH)
    for seed, picture in zip(some, pictures, strict=True):
      buffer = io.BytesIO()
      Image.fromarray(picture).save(buffer, "PNG")
      write_bytes(folder / _name(seed), buffer.getvalue())
