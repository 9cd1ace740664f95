"""From a config to what it means (data, task, labels, head, input), and to the model: base, head and method, with
weights or as shapes alone."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from peftjax import config as config_lib
from peftjax import data as data_lib
from peftjax import hub, masks, memory, methods, tasks
from peftjax.adding import add
from peftjax.errors import NotHere, UserError, nearest
from peftjax.interop import lora_files, peft
from peftjax.loading import (
  described,
  folder_of,
  from_config,
  initialise,
  inputs_folder,
  is_index_folder,
  load,
  put_adapter,
)
from peftjax.model import Model
from peftjax.models import pretrained
from peftjax.models.components import COMPOSITE
from peftjax.models.family import CAUSAL_LM, CTC, ENCODER, SEQ2SEQ_LM, SPEECH_RECOGNITION
from peftjax.models.layers import Runtime
from peftjax.models.registry import family_of
from peftjax.parallel.sharding import layout_of
from peftjax.quantize_model import Quantization
from peftjax.registry import resolve
from peftjax.train import evaluators, fitting, promised

log = logging.getLogger(__name__)

INITS = ("pretrained", "random")
ADAPTER_KEY = 1  # folded into the seed's key, so that no other draw shares the adapter's


class Head(NamedTuple):
  """What is built on a base.

  Attributes:
    task: what the architecture computes, such as "text_classification"; "": the one that config.json names.
    label_names: of its classes, or
    num_labels: their number.
  """

  task: str = ""
  label_names: Sequence[str] = ()
  num_labels: int = 0


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a config means.

  Attributes:
    config: as given.
    folder: the model's; None of a model of the user's own.
    hf_config: its config.json; what `described` says of several models as one; {} of a model of the user's own.
    header: of the data, a `Dataset` where it was opened; without a name where there is none to ask.
    task: None: a bare model, of which nobody asks a task.
    head: what is built on the base.
    notes: lines for the log.
  """

  config: ConfigDict
  folder: Path | None
  hf_config: Mapping[str, Any]
  header: data_lib.Header
  task: tasks.Task | None
  head: Head
  notes: tuple[str, ...] = ()

  def inputs(self, header: data_lib.Header | None = None) -> data_lib.Input:
    """What makes batches of the data, or of other data for the same task."""
    assert self.task is not None
    folder = None if self.folder is None else inputs_folder(self.folder)
    made = data_lib.make_input(self.config, header or self.header, self.task, folder)
    if header is None and self.header.name:  # without data nobody knows yet what they have a use for
      made.check_read()
    return made

  @property
  def is_composite(self) -> bool:
    """Whether it is several models as one."""
    return COMPOSITE in self.hf_config

  def model(self, abstract: bool = False, mesh: Mesh | None = None) -> Model:
    """The base with the task's head and the config's method.

    Args:
      abstract: shapes alone: no weights are read or made.
      mesh: of several devices: the base is read straight onto it.

    Raises:
      UserError: as `peftjax.load` and `Model.add` do; of a model or task of the user's own, as `fitting.check`.
    """
    if self.folder is None:
      return self._fitted(own_model(self.config, self.task, abstract))
    config, section = self.config, self.config.model
    method = methods.build(config.method)
    options: dict[str, Any] = {"runtime": runtime(config), "quantize": quantization(config), "family": section.family}
    if not self.is_composite:
      options |= self.head._asdict()
    if section.init not in INITS:
      raise UserError(f"model.init={section.init!r}; {nearest(section.init, INITS)}")
    if abstract or section.init == "random":
      if self.is_composite:
        model = described(section.path, section.dtype, component_dtypes=component_dtypes(config), **options)
      else:
        model = from_config(self.hf_config, section.dtype, **options)
      if section.init == "random" and section.adapter:
        raise UserError("model.adapter: an adapter needs the base that it was trained on, not model.init=random")
      if section.adapter:  # its method is the adapter's
        model = put_adapter(model, hub.local(section.adapter), section.other_base)
        return self._fitted(model.with_params(jax.eval_shape(lambda tree: tree, model.params)))
      if section.init == "random" and not abstract:
        if options["quantize"]:
          raise UserError("model.quantize: a model with model.init=random trains its base, which cannot be quantised")
        memory.check(masks.count(model.params).bytes, f"model.init=random: the weights of {section.path}")
        model = initialise(model, jax.random.key(config.seed))
        model = model if self.is_composite else dataclasses.replace(model, folder=self.folder)
    else:
      if mesh is not None and mesh.size > 1:
        options["place"] = lambda base: layout_of(base, mesh).shardings
      model = load(section.path, section.adapter or None, section.dtype, seed=config.seed,
                   other_base=section.other_base, new_head=section.new_head, component_dtypes=component_dtypes(config),
                   **options)  # fmt: skip
      if section.adapter:
        for note in peft.notes_on(hub.local(section.adapter)):
          log.warning("model.adapter: %s", note)
        return self._fitted(model)  # its method is the adapter's
    return self._fitted(add(model, method, jax.random.fold_in(jax.random.key(config.seed), ADAPTER_KEY)))

  def _fitted(self, model: Model) -> Model:
    """The model, held against the task where one of them is the user's own."""
    if self.task is not None and (self.folder is None or ":" in self.task.name):
      fitting.check(model, self.task, self.inputs().training(), self.config)
    return model


def runtime(config: ConfigDict) -> Runtime:
  """How the model runs, from `config.model`."""
  section = config.model
  return Runtime(
    compute_dtype=section.compute_dtype or None,
    attention=section.attention,
    remat=section.remat,
    scan_layers=section.scan_layers,
    dropout=None if section.dropout < 0 else section.dropout,
    trains_as_stored=section.trains_as_stored,
  )


def quantization(config: ConfigDict) -> Quantization | None:
  """How the base is quantised, from `config.model`; None if it is not."""
  section = config.model
  if not section.quantize:
    return None
  return Quantization(section.quantize, section.quantize_block, section.quantize_exclude)


def own_model(config: ConfigDict, task: tasks.Task | None, abstract: bool = False) -> Model:
  """The model that `model.path=module:function` makes, with the configured method.

  The function gives what `peftjax.wrap` gives. Of `config`, `task` and `abstract` it is told what it has arguments for;
  where it does not ask whether shapes are enough, its arrays are taken for shapes.

  Raises:
    UserError: there is no such function, it gives something else, or a setting has no meaning for it.
  """
  section, method = config.model, methods.build(config.method)
  if section.quantize:
    raise UserError(f"model.quantize: a model of your own is taken as {section.path!r} makes it")
  make = _own_function(section.path)
  # An adapter notes the bytes of its base, which are made for it even where shapes are asked for.
  told = {"config": config, "task": task, "abstract": abstract and not section.adapter}
  known = inspect.signature(make).parameters
  other = [name for name, one in known.items() if one.default is one.empty and name not in told]
  if other:
    raise UserError(f"model.path={section.path!r} needs {', '.join(other)}; it is told {', '.join(told)} alone")
  model = make(**{name: value for name, value in told.items() if name in known})
  if not isinstance(model, Model):
    raise UserError(
      f"model.path={section.path!r} gave {type(model).__name__}; expected what peftjax.wrap or peftjax.load gives"
    )
  if section.adapter:
    model = model.load_adapter(section.adapter, section.other_base)
  if abstract:
    model = model.with_params(jax.eval_shape(lambda tree: tree, model.params))
  if section.adapter:  # its methods are the adapter's
    return model
  return add(model, method, jax.random.fold_in(jax.random.key(config.seed), ADAPTER_KEY))


def _own_function(path: Any) -> Callable[..., Any]:
  kind, _, name = str(path).rpartition(":")
  if "did you mean" in nearest(kind, ["packaged"]):
    raise UserError(f"model.path={path!r}: did you mean 'packaged:{name}'?")
  made: Any = resolve("model.path", str(path), {})
  if not callable(made):
    raise UserError(f"model.path={path!r} is {type(made).__name__}; expected a function that gives a model")
  return made


def check_path(path: Any) -> None:
  """Raises `UserError` if `model.path` names nothing; asks nothing of the data, and downloads nothing."""
  if is_own(path):
    _own_function(path)
  elif not str(path).startswith(("packaged:", "hub:")) and not (folder := Path(str(path)).expanduser()).exists():
    pretrained.read_config(folder)  # says what lies beside it


def is_own(path: Any) -> bool:
  """Whether `model.path` names a function of the user's own, as module:function or file.py:function."""
  where, _, name = str(path).rpartition(":")
  return (
    bool(where)
    and where not in ("packaged", "hub")
    and name.isidentifier()
    and not Path(str(path)).expanduser().exists()
  )


def component_dtypes(config: ConfigDict) -> dict[str, str]:
  """component -> dtype, from `config.model.component_dtypes`."""
  found = {}
  for entry in config.model.component_dtypes:
    name, equals, dtype = str(entry).partition("=")
    if not equals:
      raise UserError(f"model.component_dtypes: {entry!r}: expected NAME=DTYPE, such as 'vae=bfloat16'")
    found[name] = dtype
  return found


def setting(config: ConfigDict, dataset: data_lib.Dataset | None = None, trains: bool = False) -> Setting:
  """What a config means: task, labels, head and input, the same for every verb.

  The task is what `task.name` says, else what the data's header says and the model can compute, else what the model's
  architecture computes. The labels are the data's, else config.json's.

  Args:
    dataset: `config.data.name`, where it was opened.
    trains: the config is to be trained: one that names no data means the default data, and one without a task is a
      mistake. Otherwise it means the model as its config.json has it, unless model and data are both the default.

  Raises:
    UserError: a task, input or evaluator that there is not, that does not suit the data, or whose settings are of
      another type; a task of which the model has no head.
  """
  check_path(config.model.path)
  own = is_own(config.model.path)
  folder = None if own else folder_of(config.model.path)
  hf_config = _hf_config(config, folder)
  header, notes = (dataset, ()) if dataset is not None else _known_header(config, trains)
  name = _task_name(config, header, hf_config)
  if not name:
    if trains:
      data = config.data.name or config_lib.DEFAULT_DATA
      raise UserError(f"task.name: neither {data!r} nor {config.model.path!r} names a task; set it")
    tasks.check_fields(config.task)
    return Setting(config, folder, hf_config, header, None, Head(num_labels=config.task.num_labels), notes)
  if header.name:
    extended = dataclasses.replace(header, label_names=_extended(config, header))
    task = tasks.from_config(name, config.task, extended)
  else:
    header = data_lib.Header("", task=name, label_names=_labels_of(config, hf_config))
    task = tasks.from_config(name, config.task, header)
    header = dataclasses.replace(header, fields=task.fields)
  task = task.of_model(folder)
  promised.check(config, task, evaluators.classes(config, task), header.splits)
  found = Setting(config, folder, hf_config, header, task, _head_of(config, task, hf_config), notes)
  found.inputs()  # an input says what of the data it cannot read
  return found


def stored(config: ConfigDict, head: Head) -> Setting:
  """The setting of a run that was trained, whose head is known: its data are not asked.

  Raises:
    UserError: there is no model folder any more.
  """
  folder = folder_of(config.model.path)
  return Setting(config, folder, _hf_config(config, folder), data_lib.Header(""), None, head)


def _hf_config(config: ConfigDict, folder: Path | None) -> Mapping[str, Any]:
  if folder is None:  # of the user's own
    return {}
  if not is_index_folder(folder):
    return pretrained.read_config(folder)
  return described(folder, component_dtypes=component_dtypes(config), family=config.model.family).hf_config


def _head_of(config: ConfigDict, task: tasks.Task, hf_config: Mapping[str, Any]) -> Head:
  if not hf_config:
    return Head("", task.label_names, task.num_labels)
  if COMPOSITE in hf_config:
    if task.head != COMPOSITE:
      raise UserError(
        f"task.name={task.name!r} needs one model with its head, and {config.model.path!r} is several; train one of "
        f"its folders, or name a task whose `head` is {COMPOSITE!r}"
      )
    return Head()
  family = family_of(hf_config, config.model.family)
  own = family.architectures[family.architecture(hf_config, "")].task
  if config.model.init != "random" and not config.model.new_head:
    _check_order(config, task.label_names, hf_config if own == task.head else {})
  return Head("" if own == task.head else task.head, task.label_names, task.num_labels)


def _check_order(config: ConfigDict, labels: Sequence[str], hf_config: Mapping[str, Any]) -> None:
  """Raises a `UserError` if the head that training starts from has the data's labels under other numbers."""
  adapter = hub.local(config.model.adapter) if config.model.adapter else ""
  told = peft.labels_of(adapter) if adapter and lora_files.file_of(adapter) is None else {}
  where, named = ("model.adapter", told) if told else ("model.path", hf_config.get("id2label"))
  if not isinstance(named, Mapping) or not all(str(key).isdecimal() for key in named):
    return
  own = [str(named[key]) for key in sorted(named, key=int)]
  if own != list(labels) and sorted(own) == sorted(labels):
    first = next(at for at, (one, other) in enumerate(zip(own, labels)) if one != other)
    raise UserError(
      f"{where}: its head's label {first} is {own[first]!r:.60}, and the data's is {labels[first]!r:.60}: the same "
      "labels in another order; number the data's as the model's, or draw a new head by model.new_head=True"
    )


def _known_header(config: ConfigDict, trains: bool) -> tuple[data_lib.Header, tuple[str, ...]]:
  """(the header of the config's data, notes); one without a name where there is no data to ask."""
  if not config.data.name and not trains and config.model.path != config_lib.default().model.path:
    return data_lib.Header(""), ()
  try:
    return data_lib.header_of(config.data), ()
  except NotHere as error:
    if trains:
      raise
    return data_lib.Header(""), (f"{error}; task and labels are those of config.json",)


def _task_name(config: ConfigDict, header: data_lib.Header, hf_config: Mapping[str, Any]) -> str:
  """The name of the task; empty: nothing says, or `task.name` is none."""
  if config.task.name != "auto":
    return "" if config.task.name == "none" else str(config.task.name)
  if not hf_config:
    return header.task
  if COMPOSITE in hf_config:
    reads_several = header.task in tasks.TASKS and tasks.task_class(header.task).head == COMPOSITE
    return header.task if reads_several else ""
  family = family_of(hf_config, config.model.family)
  own = family.architectures[family.architecture(hf_config, "")].task
  offered = {one.task for one in family.architectures.values()}
  if header.task == SEQ2SEQ_LM:
    for kind in (SEQ2SEQ_LM, CAUSAL_LM):
      if kind in offered:
        return kind
    raise UserError(f"{header.name!r} has a source and a target, and {config.model.path!r} writes no text")
  if header.task == SPEECH_RECOGNITION and CTC in offered and SPEECH_RECOGNITION not in offered:
    return CTC
  if header.task not in ("", CAUSAL_LM):
    return header.task
  if header.task == CAUSAL_LM and CAUSAL_LM in offered and not config.data.label_column:
    return CAUSAL_LM
  if own == ENCODER:
    return ""
  if header.task and not _needs_no_labels(own) and not config.data.label_column:
    raise UserError(f"data.label_column: task {own!r} needs labels, and {header.name!r} has none that is known")
  return own


def _needs_no_labels(name: str) -> bool:
  return name in tasks.TASKS and tasks.task_class(name).needs_no_labels


def _extended(config: ConfigDict, header: data_lib.Header) -> tuple[str, ...]:
  """The data's labels; `task.num_labels` may ask for more classes."""
  labels, asked = tuple(header.label_names), config.task.num_labels
  if asked > 1 and not labels and "label" in header.fields:
    raise UserError(f"task.num_labels={asked}: the labels of {header.name} are numbers to predict; leave it out")
  if asked and labels and asked < len(labels):
    raise UserError(f"task.num_labels={asked}: {header.name} has {len(labels)} labels: {', '.join(labels[:8])}")
  return labels + tuple(f"LABEL_{index}" for index in range(len(labels), asked if labels else 0))


def _labels_of(config: ConfigDict, hf_config: Mapping[str, Any]) -> tuple[str, ...]:
  """The labels where no data names them: `task.num_labels`, or config.json's; () of one, which is a number."""
  named = {int(index): str(name) for index, name in dict(hf_config.get("id2label") or {}).items()}
  count = config.task.num_labels or len(named) or int(hf_config.get("num_labels") or 2)
  if count == 1:
    return ()
  return tuple(named[index] if len(named) == count else f"LABEL_{index}" for index in range(count))
