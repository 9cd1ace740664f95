"""The evaluator `sample`: what a pipeline samples along its training, how like its subject that is, and how far
pictures of the class have drifted from the base model's."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from peftjax.data.batching import subset
from peftjax.data.inputs.captioned_images import CaptionedImages
from peftjax.data.inputs.pictures import decode
from peftjax.data.inputs.pipeline import Pipeline
from peftjax.data.loader import EvalLoader
from peftjax.errors import UserError
from peftjax.files import write_bytes
from peftjax.image_features import Features
from peftjax.image_generation import make_sampling, plan_of, sample
from peftjax.image_sheets import sheet
from peftjax.kinds import Unfit, number, whole
from peftjax.masks import Tree, combine
from peftjax.tasks import Metric
from peftjax.train.evaluators.base import Evaluated, Evaluator, Leaves, Moment

if TYPE_CHECKING:
  from peftjax.train.run import Run

SIMILARITY = Metric("similarity", "corpus")
_POSITIVE = whole(1, 2**31 - 1), "a positive whole number"
_KINDS = {
  "count": _POSITIVE,
  "steps": _POSITIVE,
  "references": _POSITIVE,
  "seed": (whole(0, 2**32 - 1), "a whole number from 0 to 4,294,967,295"),
  "size": (whole(0, 2**13), "a whole number of pixels up to 8,192, or 0"),
  "guidance": (number(0.0, below=1e3), "a number from 0 to 1000"),
}
DRIFT = Metric("prior_drift", "corpus", higher_is_better=False)


class Samples(NamedTuple):
  """What was sampled: updates that the leaves had, and (prompt, base's pictures, pictures uint8 [N, H, W, 3])."""

  step: int
  rows: tuple[tuple[str, np.ndarray, np.ndarray], ...]


class Sample(Evaluator):
  """``samples/STEP.png`` shows the pictures under each prompt, those of the untrained model above them.

  Settings of `config.evaluators.sample`:
    prompts: of the subject; (): `input.caption`.
    prior_prompts: of what should stay; (): `input.prior_caption`, or none.
    count: pictures under each prompt, of the seeds from `seed` on.
    steps, guidance, negative, sampler, size: as of `peftjax sample`.
    features: a model of pictures, or "" for no metrics; features_size: pixels that it sees.
    references: at most so many of the training pictures are compared with.

  Metrics: similarity, the mean cosine of features between pictures under `prompts` and the training pictures (DINO of
  Ruiz et al. 2023); prior_drift, 1 less the mean cosine between a picture under `prior_prompts` and the untrained
  model's of the same seed. They are those of one split, the first that is evaluated.
  """

  name = "sample"
  settings = {"prompts": (), "prior_prompts": (), "count": 4, "seed": 0, "steps": 25, "guidance": 7.5, "negative": "",
              "sampler": "ddim", "size": 0, "features": "packaged:dinov2-small-focus", "features_size": 0,
              "references": 32}  # fmt: skip
  moments = ("before", "during", "after", "eval")

  def __init__(self, of: Run):
    super().__init__(of)
    options, inputs = self.options, of.loaders.inputs
    if not isinstance(inputs, CaptionedImages):
      raise UserError(f"evaluator 'sample' needs the input captioned_images, not {type(inputs).__name__}")
    _check(options)
    self.pipeline: Pipeline = inputs.pipeline
    self.prompts = tuple(options.prompts) or _given(inputs.options.caption)
    self.priors = tuple(options.prior_prompts) or _given(inputs.options.prior_caption)
    if not self.prompts:
      raise UserError("evaluators.sample.prompts is empty, and so is input.caption; name what to sample")
    self.specs = (SIMILARITY, *((DRIFT,) if self.priors else ())) if options.features else ()
    side = options.size or inputs.side
    self.plan = plan_of(self.pipeline.folder, options.sampler, options.steps, options.guidance, side)
    self._run = make_sampling(of.forward, self.plan)
    splits = (*of.eval_splits, *of.final_splits)
    self._split = next((one for one in splits if one in of.final_splits), splits[0] if splits else "")

  def takes(self, loader: EvalLoader) -> bool:
    return loader.name == (self._split or loader.name)

  def check(self, loader: EvalLoader) -> None:
    """Loads the model of pictures, and prepares the prompts."""
    del loader
    self.pipeline.ids([*self.prompts, *self.priors, self.options.negative])
    if self.options.features:
      _ = self._features

  def run(self, leaves: Leaves, loader: EvalLoader) -> Evaluated:
    params = combine(leaves.trainable, leaves.frozen)
    made = {prompt: self._sampled(params, prompt) for prompt in (*self.prompts, *self.priors)}
    base = self._base(leaves.frozen)
    metrics: dict[str, float] = {}
    if self.options.features:
      own = np.concatenate([self._features(made[prompt]) for prompt in self.prompts])
      metrics["similarity"] = float((own @ self._references.T).mean())
      if self.priors:
        pairs = [(self._features(made[prompt]), self._features(base[prompt])) for prompt in self.priors]
        metrics["prior_drift"] = 1.0 - float(np.mean([(one * other).sum(axis=1) for one, other in pairs]))
    return Evaluated(metrics, Samples(leaves.step, tuple((one, base[one], made[one]) for one in made)))

  def save(self, folder: Path, split: str, moment: Moment, rows: Samples) -> None:
    buffer = io.BytesIO()
    sheet([(prompt, (before, after)) for prompt, before, after in rows.rows]).save(buffer, "PNG")
    write_bytes(folder / "samples" / f"{rows.step:06}.png", buffer.getvalue())

  @functools.cached_property
  def _features(self) -> Features:
    return Features.of(self.options.features, self.options.features_size)

  @functools.cached_property
  def _references(self) -> np.ndarray:
    """Features of training pictures, as training sees them but for what is drawn."""
    loader = self.of.loaders.evals["train"]
    source, inputs = loader.source, self.of.loaders.inputs
    assert isinstance(inputs, CaptionedImages)
    chosen = np.sort(subset(len(source), min(self.options.references, len(source))))
    pictures = []
    for index in chosen:
      example = source[int(index)]
      picture = decode(example["image"], str(example.get("where", loader.name)))
      pictures.append(inputs.processor.cropped(inputs.processor.resized(picture)))
    return self._features(pictures)

  def _sampled(self, params: Tree, prompt: str) -> np.ndarray:
    count = self.options.count
    seeds = [(self.options.seed + number) % 2**32 for number in range(count)]
    return sample(self._run, params, self.plan, self.pipeline, [prompt] * count, seeds, self.options.negative, count)

  def _base(self, frozen: Tree) -> dict[str, np.ndarray]:
    """What the untrained model makes of each prompt."""
    if not hasattr(self, "_before"):
      params = combine(self.of.trainable, frozen)
      self._before = {prompt: self._sampled(params, prompt) for prompt in (*self.prompts, *self.priors)}
    return self._before


def _check(options: Mapping[str, Any]) -> None:
  """Raises a `UserError` for a setting of another kind, before anything is trained."""
  for name, (kind, expected) in _KINDS.items():
    try:
      kind(options[name])
    except Unfit:
      raise UserError(f"evaluators.sample.{name}={options[name]!r:.60}: expected {expected}") from None
  for name in ("prompts", "prior_prompts"):
    if isinstance(options[name], str) or not all(isinstance(one, str) for one in options[name]):
      raise UserError(f"evaluators.sample.{name}={options[name]!r:.60}: expected several texts, such as "
                      "('a photo of sks dog',)")  # fmt: skip
  for name in ("negative", "sampler", "features"):
    if not isinstance(options[name], str):
      raise UserError(f"evaluators.sample.{name}={options[name]!r:.60}: expected a text")


def _given(caption: Any) -> tuple[str, ...]:
  """A caption that needs no class; () otherwise."""
  return (str(caption),) if caption and "{" not in str(caption) else ()
