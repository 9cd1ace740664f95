"""Pictures and token ids as a pipeline reads them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from peftjax import config as config_lib
from peftjax import tasks
from peftjax.data import make_input
from peftjax.data.reading import example_rng
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from tests.data.pictures import encoded, picture
from tests.oracles.pipelines import LENGTH, write_tokenizer

HEADER = Header("mine", fields=("image", "text", "prior_image"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What a pipeline's folder says of pictures and texts: 4 latents a side, of 2 by 2 pixels each."""
  folder = tmp_path_factory.mktemp("pipeline")
  write_tokenizer(folder / "tokenizer")
  for name, config in (
    ("unet", {"sample_size": 4}), ("vae", {"block_out_channels": [4, 8]}),
    ("text_encoder", {"max_position_embeddings": LENGTH}),
  ):  # fmt: skip
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(config))
  return folder


def made(folder, header=HEADER, **settings):
  config = config_lib.default()
  config.input.update(settings)
  return make_input(config, header, tasks.make("denoising"), folder / "tokenizer")


def example():
  return {"image": encoded(picture(23, 15)), "text": "a dog", "prior_image": np.full((9, 9, 3), 255, np.uint8)}


def test_the_middle_of_a_picture_and_its_caption(folder):
  inputs = made(folder, prior_caption="a cat")
  found = inputs.encode(example(), None)
  resized = picture(23, 15).resize((12, 8), Image.Resampling.BILINEAR)
  middle = np.asarray(resized)[:, 2:10].transpose(2, 0, 1)
  np.testing.assert_allclose(found["pixel_values"], middle / 127.5 - 1, atol=1e-6)
  np.testing.assert_array_equal(found["prior_pixel_values"], np.ones((3, 8, 8)))
  wanted = write_tokenizer(folder / "tokenizer")(["a dog", "a cat"], padding="max_length", truncation=True)
  np.testing.assert_array_equal([found["input_ids"], found["prior_input_ids"]], wanted["input_ids"])
  shapes = {name: one.shape for name, one in inputs.batch_spec(2).items()}
  assert shapes == {"pixel_values": (2, 3, 8, 8), "input_ids": (2, LENGTH), "prior_pixel_values": (2, 3, 8, 8),
                    "prior_input_ids": (2, LENGTH), "index": (2,), "weight": (2,)}  # fmt: skip


def test_what_is_drawn_follows_from_seed_epoch_and_example(folder):
  inputs = made(folder, prior_caption="a cat", flip=True, random_crop=True, caption_dropout=0.5, size=10)
  drawn = [inputs.encode(example(), example_rng(0, epoch, 7)) for epoch in (*range(8), 3)]
  for name in drawn[0]:
    np.testing.assert_array_equal(drawn[3][name], drawn[8][name])
  assert len({one["pixel_values"].tobytes() for one in drawn}) > 3
  empty = inputs.pipeline.ids([""])[0]
  dropped = [np.array_equal(one["input_ids"], empty) for one in drawn]
  assert 0 < sum(dropped) < len(dropped)


def test_captions_of_classes(folder):
  header = Header("digits", label_names=("zero", "ankle_boot"), fields=("image", "label"), label_kind="class")
  inputs = made(folder, header, caption="a photo of {label}")
  found = inputs.encode({"image": picture(8, 8), "label": 1}, None)
  np.testing.assert_array_equal(found["input_ids"], inputs.pipeline.ids(["a photo of ankle boot"])[0])


@pytest.mark.parametrize(
  ("header", "settings", "message"),
  [
    (HEADER, {}, "input.prior_caption is empty, and pictures of mine have no captions"),
    (Header("mine", fields=("image",)), {"caption": "a {label}"}, "the pictures of mine have no classes"),
    (Header("mine", fields=("text",)), {}, "reads pictures; mine holds text"),
    (HEADER, {"prior_caption": "a", "caption_dropout": 1.0}, "caption_dropout=1.0: expected a share"),
    (HEADER, {"prior_caption": "a", "size": -1}, "size=-1: expected a whole number of pixels"),
  ],
)
def test_what_is_wrong_is_one_line(folder, header, settings, message):
  with pytest.raises(UserError, match=message):
    made(folder, header, **settings)
