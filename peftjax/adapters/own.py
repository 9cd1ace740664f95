"""Own copies of the base's leaves as leaves of a method, so that adapters that train them can share one base.

    y = module(x) with its `kernel`, `bias`, `scale` or `embedding` replaced by own_kernel, own_bias ...

A head, BitFit's biases or a module trained whole take part in batches of several adapters this way.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from peftjax.errors import UserError
from peftjax.methods.base import Call, Context, Leaves, Method
from peftjax.sites import Site

PREFIX = "own_"
LEAVES = ("kernel", "bias", "embedding", "scale", "scale_offset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Method):
  """Modules that run with leaves of their own in place of the base's.

  Attributes:
    modules: their names, one for each layer.
  """

  name: ClassVar[str] = "own"
  kinds: ClassVar[tuple[str, ...]] = ("linear", "conv", "embedding", "norm")
  leaf_names: ClassVar[tuple[str, ...]] = tuple(PREFIX + leaf for leaf in LEAVES)

  modules: tuple[str, ...] = ()

  def select(self, context: Context) -> list[Site]:
    """The sites of the modules."""
    callers = [site for site in context.sites if site.method == "__call__" and site.kind in self.kinds]
    return [site for site in callers if set(site.names) <= set(self.modules)]

  def after(self, leaves: Leaves, x: Any, y: Any, site: Site, call: Call) -> Any:
    del y
    held = {name: leaf for name in LEAVES if (leaf := call.base(name)) is not None}
    own = {name.removeprefix(PREFIX): leaf for name, leaf in leaves.items()}
    if call.rerun is None:
      raise UserError(f"{site.name}: the base cannot run with leaves of an adapter's own; give every batch one adapter")
    return call.rerun({**held, **site.fold(own)}, x)
