"""COCO's mean average precision of boxes, as pycocotools computes it (Lin et al. 2014, arXiv 1405.0312)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

# metric -> its place in COCOeval's `stats`
COCO_METRICS = {"map": 0, "map50": 1, "map75": 2}


def average_precision(rows: Mapping[str, np.ndarray], labels: int) -> dict[str, float]:
  """The metrics of `COCO_METRICS`, from 0 to 1; NaN where there is no object at all.

  Of an image the 100 surest predictions of each category count.

  Args:
    rows: of every image: "scores" [N, Q], "prediction" [N, Q] labels and "boxes" [N, Q, 4] corners of what was found;
      "true_boxes" [N, T, 4], "true_labels" [N, T], below 0 for none, and "crowd" bool [N, T] of what there is.
    labels: the number of categories.
  """
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  with contextlib.redirect_stdout(io.StringIO()):  # it prints, and stdout may be carrying JSON
    truth, found = COCO(), COCO()
    for one, content in ((truth, _objects(rows)), (found, _detections(rows))):
      one.dataset = {
        "images": [{"id": image + 1} for image in range(len(rows["scores"]))],
        "categories": [{"id": label + 1} for label in range(labels)],
        "annotations": content,
      }
      one.createIndex()
    scored = COCOeval(truth, found, "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
  return {name: float(scored.stats[at]) if scored.stats[at] >= 0 else float("nan") for name, at in COCO_METRICS.items()}


def _objects(rows: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  images, places = np.nonzero(rows["true_labels"] >= 0)
  return [
    _annotation(number, image, rows["true_labels"][image, at], rows["true_boxes"][image, at])
    | {"iscrowd": int(rows["crowd"][image, at])}
    for number, (image, at) in enumerate(zip(images, places), 1)
  ]


def _detections(rows: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  images, places = np.nonzero(np.isfinite(rows["scores"]))
  return [
    _annotation(number, image, rows["prediction"][image, at], rows["boxes"][image, at])
    | {"score": float(rows["scores"][image, at])}
    for number, (image, at) in enumerate(zip(images, places), 1)
  ]


def _annotation(number: int, image: Any, label: int, box: np.ndarray) -> dict[str, Any]:
  x0, y0, x1, y1 = (float(side) for side in box)
  sides = [x0, y0, x1 - x0, y1 - y0]
  return {
    "id": number,
    "image_id": int(image) + 1,
    "category_id": int(label) + 1,
    "bbox": sides,
    "area": sides[2] * sides[3],
    "iscrowd": 0,
  }
