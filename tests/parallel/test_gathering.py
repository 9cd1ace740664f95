"""Kernels gathered over the chips of a cube, as the compiler for TPUs sees it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from peftjax.parallel.gathering import in_stages, plane_of
from peftjax.parallel.mesh import AXES, BATCH_AXES
from peftjax.parallel.topology import topology_devices

INPUTS, OUTPUTS = 2048, 3072


@pytest.fixture(scope="module")
def mesh():
  devices = np.asarray(topology_devices("v5p:4x4x4")).reshape(1, 64, 1, 1)
  return Mesh(devices, AXES)


def compiled(mesh, gather, spec, loss_of):
  """The program of a kernel's product with a batch of one row a chip."""
  rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

  def product(kernel, x):
    x = jax.lax.with_sharding_constraint(x, rows)
    y = x @ (gather(kernel, spec) if gather else kernel)
    return loss_of(jax.lax.with_sharding_constraint(y, rows))

  kernel = jax.ShapeDtypeStruct((INPUTS, OUTPUTS), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
  x = jax.ShapeDtypeStruct((64, 512, INPUTS), jnp.bfloat16, sharding=rows)
  program = product if loss_of is jnp.tanh else jax.grad(product)
  return jax.jit(program).lower(kernel, x).compile()


def collectives(program):
  """(kind, elements) of every collective that moves a kernel."""
  found = re.findall(r"= \w+\[([\d,]*)\]\S* (all-gather|all-reduce|reduce-scatter)\(", program.as_text())
  return [(kind, int(np.prod([int(size) for size in shape.split(",") if size]))) for shape, kind in found]


@pytest.mark.parametrize("spec", [PartitionSpec("fsdp", None), PartitionSpec(None, "fsdp")])
def test_planes_are_gathered_and_then_the_cube(mesh, spec):
  whole = INPUTS * OUTPUTS
  staged = compiled(mesh, in_stages(mesh), spec, jnp.tanh)
  assert collectives(staged) == [("all-gather", whole // 4), ("all-gather", whole)]
  at_once = compiled(mesh, None, spec, jnp.tanh)
  assert collectives(at_once) == [("all-reduce", whole)]  # what this module is there to avoid
  temp = [program.memory_analysis().temp_size_in_bytes for program in (staged, at_once)]
  assert temp[0] < 0.5 * temp[1]


def test_a_gradient_goes_back_at_once(mesh):
  program = compiled(mesh, in_stages(mesh), PartitionSpec("fsdp", None), lambda y: jnp.sum(jnp.tanh(y)))
  assert [one for one in collectives(program) if one[0] != "all-gather"] == [("all-reduce", INPUTS * OUTPUTS)]


def test_planes_in_the_order_of_devices():
  """Neighbours of a host come first, and hosts fill a plane before the next."""
  coords = [tuple(device.coords) for device in topology_devices("v5p:8x8x4")]
  assert plane_of(coords) == 64
  assert plane_of([tuple(device.coords) for device in topology_devices("v5e:8x8")]) == 0
  assert plane_of([tuple(device.coords) for device in topology_devices("v5p:2x2x4")]) == 0
  assert plane_of(sorted(coords)) == 0  # planes are not side by side
  assert in_stages(Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)) is None
