"""Several models as one: a dict of components under one module, with one tree and names that begin with the component.

{"query": {"encoder": ...}, "passage": {"encoder": ...}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import linen as nn

from peftjax.models.family import Architecture, Family
from peftjax.models.layers import Runtime

COMPOSITE = "composite"
CLASS_NAME = "Composite"
OWN = ("dtype", "compute_dtype", "output_hidden_states")
"""Of how a component runs, what need not be the others'."""


def within(runtime: Runtime, own: Runtime) -> Runtime:
  """How a component with a runtime of its own runs in a whole: with `OWN` of it, and the rest of the whole's."""
  return dataclasses.replace(runtime, **{name: getattr(own, name) for name in OWN})


@dataclasses.dataclass(frozen=True)
class Part:
  """One component: its family and architecture, its config as parsed and as config.json has it, where it came from.

  Attributes:
    runtime: how it runs by itself; in the whole, `OWN` stays its own and the rest is the whole's.
  """

  family: Family
  architecture: str
  config: Any
  hf_config: Mapping[str, Any]
  runtime: Runtime
  folder: Path | None = None

  def within(self, runtime: Runtime) -> Runtime:
    """How it runs in a whole that runs so."""
    return within(runtime, self.runtime)


class Components(nn.Module):
  """Models under their names.

  Inputs: name of a component -> its inputs by name; components that are not named do not run.
  Outputs: name -> outputs.
  """

  parts: tuple[tuple[str, Any, Any, Runtime], ...]

  def setup(self) -> None:
    for name, build, config, runtime in self.parts:
      setattr(self, name, build(config, runtime))

  def __call__(self, **inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(self, name)(**given) for name, given in inputs.items()}


@dataclasses.dataclass(frozen=True)
class CompositeFamily(Family):
  """What components declare, under their names.

  Attributes:
    parts: name -> component.
    folder: that of model_index.json, if they came from one.
  """

  parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
  folder: Path | None = None

  def stacks_of(self, architecture: str, config: Any, runtime: Runtime) -> dict[str, int]:
    return {
      f"{name}.{path}": count
      for name, part in self.parts.items()
      for path, count in part.family.stacks_of(part.architecture, part.config, runtime).items()
    }

  def all_stacks(self, architecture: str, config: Any) -> dict[str, int]:
    return {
      f"{name}.{path}": count
      for name, part in self.parts.items()
      for path, count in part.family.all_stacks(part.architecture, part.config).items()
    }


def composite_family(parts: Mapping[str, Part], folder: Path | None = None) -> CompositeFamily:
  """The family of one composite model."""
  heads = [f"{name}.{head}" for name, part in parts.items() for head in _of(part).head]

  def build(config: Any, runtime: Runtime) -> nn.Module:
    del config
    return Components(tuple((name, _of(part).build, part.config, part.within(runtime)) for name, part in parts.items()))

  return CompositeFamily(
    model_types=(COMPOSITE,),
    parse=lambda hf_config: None,
    architectures={CLASS_NAME: Architecture(build, COMPOSITE, head=tuple(heads))},
    stacks=lambda config: {},
    inputs=lambda config: {name: part.family.inputs_of(part.architecture, part.config) for name, part in parts.items()},
    parts=dict(parts),
    folder=folder,
  )


def _of(part: Part) -> Architecture:
  return part.family.architectures[part.architecture]
