"""The input `images`: its processors against transformers', decoding, augmentation, mixing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from peftjax import tasks
from peftjax.config import default
from peftjax.data.inputs.image_processing import processor_of, read_processor
from peftjax.data.inputs.images import Images
from peftjax.data.inputs.pictures import decode
from peftjax.data.reading import example_rng
from peftjax.data.sources.types import Header
from peftjax.errors import UserError
from tests.data.pictures import encoded, picture

PROCESSORS = {
  "vit": (ViTImageProcessorPil, {"size": {"height": 17, "width": 13}}),
  "vit-int": (ViTImageProcessorPil, {"size": 9, "resample": 3, "do_rescale": False}),
  "vit-plain": (ViTImageProcessorPil, {"size": 16, "do_normalize": False, "do_convert_rgb": True}),
  "deit": (DeiTImageProcessorPil, {"size": 21, "crop_size": 15, "image_mean": [0.4, 0.5, 0.6]}),
  "deit-padded": (DeiTImageProcessorPil, {"size": {"height": 12, "width": 30}, "crop_size": 19}),
  "dinov2": (BitImageProcessorPil, {"size": {"shortest_edge": 19}, "crop_size": {"height": 14, "width": 15}}),
  "dinov2-uncut": (BitImageProcessorPil, {"do_resize": False, "crop_size": 27, "resample": 1}),
  "clip": (CLIPImageProcessorPil, {"size": 18, "crop_size": 17}),
}
SIZES = [(31, 23), (8, 40), (5, 5), (64, 33)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_transformers(name):
  kind, fields = PROCESSORS[name]
  reference = kind(**fields)
  ours = processor_of(json.loads(reference.to_json_string()), name)
  for seed, (width, height) in enumerate(SIZES):
    for mode in ("RGB", "L", "RGBA", "P", "LA", "1") if ours.on_white else ("RGB",):
      image = picture(width, height, seed, mode)
      expected = reference(image, return_tensors="np")["pixel_values"][0]
      found = ours(decode(encoded(image), name, ours.on_white))
      assert found.dtype == np.float32
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=f"{width}x{height} {mode}")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_files_are_read_as_transformers_reads_them(tmp_path, mode, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
  picture(29, 14, mode=mode).save(path, exif=exif)
  found = decode(path.read_bytes(), str(path), on_white=False)
  np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(str(path))))


RAMP = np.linspace(0, 1, 29 * 14).reshape(14, 29)


@pytest.mark.parametrize(("kind", "brightest"), [("PNG", 65535), ("PNG", 200), ("TIFF", 65535), ("PPM", 65535)])
def test_16_bits_a_sample(kind, brightest):
  samples = (RAMP * brightest).astype(np.uint16)
  found = decode(encoded(Image.fromarray(samples), kind), "deep")
  np.testing.assert_array_equal(np.asarray(found), np.stack([samples >> 8] * 3, -1))


def test_samples_without_a_white():
  for samples in (RAMP * 255).astype(np.int32), (RAMP * 255).astype(np.float32):
    image = Image.fromarray(samples)
    found = decode(encoded(image, "TIFF"), "wide")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
  for samples, said in (
    ((RAMP * 1e6).astype(np.int32), "whole numbers of 32 bits from 0 to 1e+06"),
    ((RAMP - 1).astype(np.int32), "whole numbers of 32 bits from -1 to 0"),
    (RAMP.astype(np.float32), "fractions from 0 to 1"),
    ((RAMP * 1e3).astype(np.float32), "fractions from 0 to 1000"),
  ):
    with pytest.raises(UserError, match=re.escape(f"wide: its samples are {said}; write it with 8 or 16 bits")):
      decode(encoded(Image.fromarray(samples), "TIFF"), "wide")


def test_a_model_folder_without_a_processor_has_its_kinds(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "image_size": 98}))
  found = read_processor(tmp_path)
  assert found == processor_of({"image_processor_type": "BitImageProcessor", "size": 98, "crop_size": 98}, "")
  assert found.output == (98, 98) and found.sized(42).output == (42, 42) and found.sized(42).shortest == 42


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"image_processor_type": "OwlViTImageProcessor"}, "image_processor_type='OwlViTImageProcessor' is not supported"),
    ({"size": {"longest_edge": 9}}, "expected height and width, or shortest_edge"),
    ({"size": -3}, "expected whole numbers of pixels from 1"),
    ({"resample": 9}, "resample=9: expected one of 0 to 5"),
    ({"resample": [2]}, "resample=[2]: expected one of 0 to 5"),
    ({"resample": True}, "resample=True: expected one of 0 to 5"),
    ({"size": {"height": True, "width": 4}}, "expected whole numbers of pixels from 1"),
    ({"image_processor_type": "DetrImageProcessor", "size": True}, "size=True: expected height and width"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std=0: expected a finite number above 0"),
    ({"image_mean": [0.5]}, "expected a number for each of 3 channels"),
    ({"do_resize": 1}, "do_resize=1: expected true or false"),
    ({"do_pad": True}, "do_pad=True is not computed here"),
  ],
)
def test_a_processor_that_is_none(given, said):
  with pytest.raises(UserError, match=re.escape(said)):
    processor_of({"image_processor_type": "ViTImageProcessor", **given}, "f")


@pytest.mark.parametrize(
  ("content", "said"),
  [
    (encoded(picture(), "JPEG")[:300], "cat.jpg: the image cannot be read: Truncated"),
    (encoded(picture(), "PNG")[:-40], "cat.jpg: the image cannot be read"),
    (b"", "cat.jpg: it is empty"),
    (b"no picture at all", "cat.jpg: no image of JPEG, PNG"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cat.jpg: no image of"),
  ],
)
def test_a_damaged_picture_takes_one_line_with_its_file(content, said):
  with pytest.raises(UserError, match=said):
    decode(content, "cat.jpg")


def test_a_picture_that_would_grow_beyond_all_bounds(tmp_path):
  (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
  with pytest.raises(UserError, match="thin.png: 1 x 9000 pixels would be resized to 224 x 2016000"):
    inputs(tmp_path).encode({"image": encoded(picture(1, 9000)), "where": "thin.png"}, None)


def inputs(tmp_path, **settings):
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "image_size": 12}))
  config = default()
  with config.unlocked():
    config.input.update(settings)
  header = Header("pictures", label_names=("a", "b", "c"), fields=("image", "label"), label_kind="class")
  return Images(config, header, tasks.make("image_classification", header.label_names), tmp_path)


def examples(count):
  return [{"image": encoded(picture(seed=seed)), "where": f"{seed}.png", "label": seed % 3} for seed in range(count)]


def test_augmentation_is_a_function_of_seed_epoch_and_example(tmp_path):
  read = inputs(tmp_path, crop=0.3, flip=True, rand_augment=2)
  (example,) = examples(1)

  def pixels(*key):
    return read.encode(example, example_rng(*key))["pixel_values"]

  np.testing.assert_array_equal(pixels(1, 2, 3), pixels(1, 2, 3))
  for other in ((0, 2, 3), (1, 1, 3), (1, 2, 4)):
    assert np.abs(pixels(1, 2, 3) - pixels(*other)).max() > 0.1
  plain = inputs(tmp_path)
  np.testing.assert_array_equal(
    plain.encode(example, example_rng(0, 0, 0))["pixel_values"], read.encode(example, None)["pixel_values"]
  )


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_pictures_and_what_they_are_labelled_with(tmp_path, settings):
  read, plain = inputs(tmp_path, **settings), inputs(tmp_path)
  ids = np.array([0, 1, 2, 3, -1])

  def batch(one, epoch):
    rngs = [example_rng(0, epoch, index) if epoch is not None else None for index in range(4)]
    return one.batch(examples(4), ids, 0, rngs)

  mixed, own = batch(read, 1), batch(plain, 1)["pixel_values"]
  assert {name: (one.shape, one.dtype) for name, one in mixed.items()} == {
    name: (one.shape, one.dtype) for name, one in read.batch_spec(5).items()
  }
  assert mixed["other_labels"].tolist()[:4] == [0, 0, 1, 2] and mixed["labels"].tolist()[:4] == [0, 1, 2, 0]
  for row in range(4):
    share, other = mixed["own_share"][row], own[row - 1 if row else 3]
    if "cutmix" not in settings:
      np.testing.assert_allclose(mixed["pixel_values"][row], share * own[row] + (1 - share) * other, atol=1e-5)
    elif "mixup" not in settings:
      kept = (mixed["pixel_values"][row] == own[row]).all(axis=0).mean()
      assert kept == pytest.approx(share, abs=0.02)
  np.testing.assert_array_equal(batch(read, None)["pixel_values"], batch(plain, None)["pixel_values"])
  assert (batch(read, None)["own_share"] == 1).all()


def test_the_loss_of_mixed_labels_is_that_of_shared_ones():
  """-Σ q log p with q the mixed labels, by the plain formula."""
  task = tasks.make("image_classification", ("a", "b", "c"), label_smoothing=0.1)
  logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  batch = {
    "labels": np.array([0, 1, 2, 2]),
    "other_labels": np.array([1, 1, 0, 2]),
    "own_share": np.array([0.3, 0.9, 0.5, 1.0], np.float32),
    "weight": np.ones(4, np.float32),
    "pixel_values": logits,
  }
  total, weight, _ = task.loss(lambda read: {"logits": read["pixel_values"]}, batch, None)
  share = batch["own_share"][:, None]
  targets = share * np.eye(3)[batch["labels"]] + (1 - share) * np.eye(3)[batch["other_labels"]]
  targets = 0.9 * targets + 0.1 / 3
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert float(total) == pytest.approx(float(-(targets * log_p).sum()), rel=1e-5) and float(weight) == 4


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"crop": 2.0}, "input.crop=2.0: expected a number from 0 to 1"),
    ({"flipp": True}, "input.flipp: no such field of Images; did you mean 'flip'"),
    ({"size": -1}, "input.size=-1"),
  ],
)
def test_settings_that_are_none(tmp_path, settings, said):
  with pytest.raises(UserError, match=re.escape(said)):
    inputs(tmp_path, **settings)
