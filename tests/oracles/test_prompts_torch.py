"""Prompts, prefixes, bottlenecks and interventions against their papers' equations in torch, and PEFT's own encoders.

Whole models with PEFT's prompt tuning and prefix tuning are compared in test_peft_adapters.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from peftjax import methods
from peftjax.methods import Call, Site
from peftjax.methods.compacter import phm
from peftjax.methods.prefix import attend_to_prefix
from peftjax.methods.reft import orthonormal
from peftjax.models.layers import attention
from peftjax.sites import Stream

HIDDEN, LENGTH, BATCH = 10, 6, 2


def site(kind, shape, method="__call__"):
  return Site(("layer",), method, kind, ("layer",), (), shape, streams=(Stream(mask="is_token"),))


def call(**shared):
  return Call(base=lambda name: None, shared=shared, dropout=lambda x, rate: x)


def draw(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def randomised(leaves):
  return {name: draw(*leaf.shape, seed=index) for index, (name, leaf) in enumerate(leaves.items())}


def tensors(leaves):
  return {name: torch.tensor(leaf) for name, leaf in leaves.items()}


def close(found, wanted):
  wanted = wanted.detach().numpy()
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def made(method, place):
  """The method's leaves at a site, with random values."""
  return randomised(method.create(jax.random.key(0), place, {}))


# Bottlenecks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu", "tanh"])
def test_serial_adapter(activation):
  method = methods.Houlsby(bottleneck_dim=3, activation=activation)
  place = site("sublayer", (HIDDEN,), "mlp_branch")
  leaves, y = made(method, place), draw(BATCH, LENGTH, HIDDEN)
  t = tensors(leaves)
  functions = {
    "gelu": torch.nn.functional.gelu,
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
  }
  middle = functions[activation](torch.tensor(y) @ t["down_kernel"] + t["down_bias"])
  wanted = torch.tensor(y) + middle @ t["up_kernel"] + t["up_bias"]
  close(method.after(leaves, {"x": y * 0}, jnp.asarray(y), place, call()), wanted)


@pytest.mark.parametrize("learned", [False, True])
def test_parallel_adapter_reads_the_input_of_its_sublayer(learned):
  method = methods.ParallelAdapter(bottleneck_dim=3, scale=4.0, learned_scale=learned)
  place = site("sublayer", (HIDDEN,), "mlp_branch")
  leaves, x, y = made(method, place), draw(BATCH, LENGTH, HIDDEN), draw(BATCH, LENGTH, HIDDEN, seed=1)
  t = tensors(leaves)
  scale = t["adapter_scale"] if learned else 4.0
  middle = torch.relu(torch.tensor(x) @ t["down_kernel"] + t["down_bias"])
  wanted = torch.tensor(y) + scale * (middle @ t["up_kernel"] + t["up_bias"])
  close(method.after(leaves, {"x": x}, jnp.asarray(y), place, call()), wanted)


def test_adapter_plus():
  method = methods.AdapterPlus(bottleneck_dim=3)
  place = site("block", (HIDDEN,))
  leaves, y = made(method, place), draw(BATCH, LENGTH, HIDDEN)
  t = tensors(leaves)
  middle = torch.nn.functional.gelu(torch.tensor(y) @ t["down_kernel"] + t["down_bias"])
  wanted = torch.tensor(y) + t["channel_scale"] * (middle @ t["up_kernel"] + t["up_bias"])
  found, rest = method.after(leaves, {"x": y}, (jnp.asarray(y), None), place, call())
  close(found, wanted)
  assert rest is None


def kronecker(rule, s, t):
  return sum(torch.kron(rule[i], s[i] @ t[i].T) for i in range(len(rule)))


def test_compacter_is_a_sum_of_kronecker_products():
  rule, s, t = draw(2, 2, 2), draw(2, HIDDEN // 2, 3), draw(2, 4, 3, seed=1)
  x = draw(BATCH, LENGTH, HIDDEN)
  close(phm(*map(jnp.asarray, (x, rule, s, t))), torch.tensor(x) @ kronecker(*map(torch.tensor, (rule, s, t))))

  method = methods.Compacter(bottleneck_dim=4, phm_dim=2, phm_rank=3)
  place = site("sublayer", (HIDDEN,), "mlp_branch")
  leaves, shared = made(method, place), randomised(method.create_shared(jax.random.key(0), [place]))
  w, rule = tensors(leaves), torch.tensor(shared["phm_rule"])
  middle = torch.nn.functional.gelu(torch.tensor(x) @ kronecker(rule, w["down_s"], w["down_t"]) + w["down_bias"])
  wanted = torch.tensor(x) + middle @ kronecker(rule, w["up_s"], w["up_t"]) + w["up_bias"]
  close(method.after(leaves, {"x": x}, jnp.asarray(x), place, call(**shared)), wanted)


# Interventions ----------------------------------------------------------------------------------------------------


def test_loreft_with_torch_s_orthogonal_parametrisation():
  rank = 3
  rotation = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(rank, HIDDEN, bias=False))
  source = torch.nn.Linear(HIDDEN, rank)
  h = draw(BATCH, LENGTH, HIDDEN)
  method = methods.ReFT(rank=rank, prefix_positions=2, suffix_positions=0)
  place = site("block", (HIDDEN,))
  leaves = {
    "prefix_rotation": rotation.weight.detach().numpy(),
    "prefix_source_kernel": source.weight.detach().numpy().T,
    "prefix_source_bias": source.bias.detach().numpy(),
  }
  assert {name: leaf.shape for name, leaf in leaves.items()} == {
    name: leaf.shape for name, leaf in made(method, place).items()
  }
  base = torch.tensor(h)
  rotated = base @ rotation.weight
  edited = base + (source(base) - rotated) @ rotation.weight.T
  wanted = torch.cat([edited[:, :2], base[:, 2:]], dim=1)
  found, _ = method.after(leaves, {"x": h}, (jnp.asarray(h), None), place, call())
  close(found, wanted)


def test_orthonormal_is_the_q_of_qr():
  matrix = draw(HIDDEN, 4)
  q, r = torch.linalg.qr(torch.tensor(matrix))
  close(orthonormal(jnp.asarray(matrix)), q * torch.sign(torch.diagonal(r)))


@pytest.mark.parametrize(
  ("mask", "first", "last"),
  [
    ([1, 1, 1, 1, 1, 1], [0, 1], [4, 5]),
    ([1, 1, 1, 1, 1, 0], [0, 1], [3, 4]),
    ([0, 0, 1, 1, 1, 1], [2, 3], [4, 5]),
    ([1, 1, 1, 0, 0, 0], [0], [2]),
    ([1, 0, 0, 0, 0, 0], [], []),
  ],
)
def test_loreft_edits_both_ends_of_the_text_alone(mask, first, last):
  method = methods.ReFT(rank=2, prefix_positions=2, suffix_positions=2)
  place, whole = site("block", (HIDDEN,)), site("model", (HIDDEN,))
  leaves, h = made(method, place), draw(1, LENGTH, HIDDEN)
  one = call()
  method.before({}, {"embeds": h, "is_token": jnp.asarray([mask])}, whole, one)
  found, _ = method.after(leaves, {"x": h}, (jnp.asarray(h), None), place, one)
  changed = np.flatnonzero(np.abs(np.asarray(found)[0] - h[0]).max(axis=-1) > 1e-4)
  assert sorted(changed) == sorted(first + last)


# Attention --------------------------------------------------------------------------------------------------------


def test_prefix_is_attention_over_prefix_and_sequence():
  heads, kv_heads, size, count = 4, 2, 3, 5
  q, k, v = draw(BATCH, LENGTH, heads, size), draw(BATCH, 7, kv_heads, size), draw(BATCH, 7, kv_heads, size, seed=1)
  prefix_k, prefix_v = draw(count, kv_heads, size), draw(count, kv_heads, size, seed=1)
  mask = np.random.default_rng(0).random((BATCH, 1, LENGTH, 7)) < 0.6
  bias = draw(1, heads, LENGTH, 7)
  x = {"q": q, "k": k, "v": v, "mask": mask, "bias": bias}
  x = attend_to_prefix({name: jnp.asarray(value) for name, value in x.items()}, prefix_k, prefix_v)
  found = attention(x["q"], x["k"], x["v"], x["mask"], bias=x["bias"])

  def per_query_head(value, prefix):
    joined = torch.cat([torch.tensor(prefix)[None].expand(BATCH, -1, -1, -1), torch.tensor(value)], dim=1)
    return joined.repeat_interleave(heads // kv_heads, dim=2).transpose(1, 2)

  seen = torch.cat([torch.ones(BATCH, 1, LENGTH, count, dtype=torch.bool), torch.tensor(mask)], dim=-1)
  added = torch.cat([torch.zeros(1, heads, LENGTH, count), torch.tensor(bias)], dim=-1).expand(BATCH, -1, -1, -1)
  wanted = torch.nn.functional.scaled_dot_product_attention(
    torch.tensor(q).transpose(1, 2),
    per_query_head(k, prefix_k),
    per_query_head(v, prefix_v),
    attn_mask=added.masked_fill(~seen, float("-inf")),
  ).transpose(1, 2)
  close(found, wanted)


def test_prefix_network_lays_out_layers_as_peft_does():
  layers, heads, size, count = 3, 2, 4, 5
  config = peft.PrefixTuningConfig(
    num_virtual_tokens=count,
    token_dim=heads * size,
    num_attention_heads=heads,
    num_layers=layers,
    prefix_projection=True,
    encoder_hidden_size=7,
    num_transformer_submodules=1,
  )
  theirs = peft.PrefixEncoder(config)
  method = methods.Prefix(num_virtual_tokens=count, reparametrize=True, encoder_hidden_size=7)
  names = tuple(f"layers.{index}.attention" for index in range(layers))
  place = Site(("layers", "attention"), "attend", "attention", names, (layers,), (heads, heads, size))
  weights = {
    "encoder_embedding": theirs.embedding.weight,
    "encoder_in_kernel": theirs.transform[0].weight.T,
    "encoder_in_bias": theirs.transform[0].bias,
    "encoder_out_kernel": theirs.transform[2].weight.T,
    "encoder_out_bias": theirs.transform[2].bias,
  }
  shared = {name: jnp.asarray(value.detach().numpy()) for name, value in weights.items()}
  fresh = method.create_shared(jax.random.key(0), [place])
  assert {name: leaf.shape for name, leaf in shared.items()} == {name: leaf.shape for name, leaf in fresh.items()}
  flat = theirs(torch.arange(count)[None])[0].view(count, layers * 2, heads, size)
  (stacked,) = method.derive(shared, [place])
  apart = method.derive(shared, [place.one(index) for index in range(layers)])
  for index in range(layers):
    for name, offset in (("prefix_k", 0), ("prefix_v", 1)):
      close(stacked[name][index], flat[:, 2 * index + offset])
      np.testing.assert_array_equal(apart[index][name], stacked[name][index])


@dataclasses.dataclass
class Projections:
  """What the method asks of an attention module."""

  k_proj: object
  v_proj: object


def test_llama_adapter_equals_its_equation():
  heads, kv_heads, size, count = 4, 2, 3, 5
  method = methods.LlamaAdapter(num_virtual_tokens=count)
  place = dataclasses.replace(site("attention", (heads, kv_heads, size), "attend"), hidden=HIDDEN)
  leaves = made(method, place)
  w_k, w_v = draw(HIDDEN, kv_heads * size), draw(HIDDEN, kv_heads * size, seed=1)
  q, y = draw(BATCH, LENGTH, heads, size), draw(BATCH, LENGTH, heads, size, seed=1)
  one = call()
  one.module = Projections(lambda x: x @ w_k, lambda x: x @ w_v)
  found = method.after(leaves, {"q": jnp.asarray(q)}, jnp.asarray(y), place, one)

  prompt = torch.tensor(leaves["adaption_prompt"])
  k, v = (
    (prompt @ torch.tensor(w)).view(count, kv_heads, size).repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1)
    for w in (w_k, w_v)
  )
  scores = torch.tensor(q).transpose(1, 2) @ k.transpose(1, 2)[None] / size**0.5
  extra = torch.tensor(leaves["adaption_gate"]) * scores.softmax(dim=-1) @ v[None]
  close(found, torch.tensor(y) + extra.transpose(1, 2))


# Prompt encoders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_p_tuning_equals_peft_s_encoder(kind):
  count = 5
  config = peft.PromptEncoderConfig(
    num_virtual_tokens=count,
    token_dim=HIDDEN,
    encoder_reparameterization_type=kind,
    encoder_hidden_size=7,
    encoder_num_layers=2,
    num_transformer_submodules=1,
  )
  theirs = peft.PromptEncoder(config)
  method = methods.PTuning(num_virtual_tokens=count, encoder_type=kind, encoder_hidden_size=7)
  fresh = method.create(jax.random.key(0), site("model", (HIDDEN,)), {})
  assert sum(leaf.size for leaf in fresh.values()) == sum(weight.numel() for weight in theirs.parameters())
  leaves = {"encoder_embedding": theirs.embedding.weight}
  linear = [layer for layer in theirs.mlp_head if isinstance(layer, torch.nn.Linear)]
  for index, layer in enumerate(linear):
    leaves |= {f"encoder_head_{index}_kernel": layer.weight.T, f"encoder_head_{index}_bias": layer.bias}
  for layer in range(2 if kind == "LSTM" else 0):
    for direction, suffix in (("forward", ""), ("reverse", "_reverse")):
      for ours, name in (("input", "ih"), ("hidden", "hh")):
        weight, bias = (getattr(theirs.lstm_head, f"{leaf}_{name}_l{layer}{suffix}") for leaf in ("weight", "bias"))
        leaves |= {f"encoder_lstm_{layer}_{direction}_{ours}_{leaf}": value
                   for leaf, value in (("kernel", weight.T), ("bias", bias))}  # fmt: skip
  leaves = {name: jnp.asarray(value.detach().numpy()) for name, value in leaves.items()}
  assert {name: leaf.shape for name, leaf in leaves.items()} == {name: leaf.shape for name, leaf in fresh.items()}
  close(method.prompt(leaves), theirs(torch.arange(count)[None])[0])


# UniPELT ----------------------------------------------------------------------------------------------------------


def torch_gate(leaves, x, mask):
  opened = torch.sigmoid(torch.tensor(x) @ leaves["gate_kernel"] + leaves["gate_bias"])[..., 0]
  mask = torch.tensor(mask, dtype=torch.float32)
  return ((opened * mask).sum(1) / mask.sum(1))[:, None, None]


def test_unipelt_gates_each_part_by_its_input():
  method = methods.UniPELT(rank=2, alpha=6.0, num_virtual_tokens=3, bottleneck_dim=4)
  mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
  one = call()
  x, y = draw(BATCH, LENGTH, HIDDEN), draw(BATCH, LENGTH, 8, seed=1)
  method.before({}, {"embeds": x, "is_token": jnp.asarray(mask)}, site("model", (HIDDEN,)), one)

  place = site("linear", (HIDDEN, 8))
  leaves = made(method, place)
  t = tensors(leaves)
  wanted = torch.tensor(y) + torch_gate(t, x, mask) * 3.0 * (torch.tensor(x) @ t["lora_a"] @ t["lora_b"])
  close(method.after(leaves, jnp.asarray(x), jnp.asarray(y), place, one), wanted)

  place = site("sublayer", (HIDDEN,), "mlp_branch")
  leaves, branch = made(method, place), draw(BATCH, LENGTH, HIDDEN, seed=2)
  t = tensors(leaves)
  middle = torch.relu(torch.tensor(branch) @ t["down_kernel"] + t["down_bias"])
  wanted = torch.tensor(branch) + torch_gate(t, x, mask) * (middle @ t["up_kernel"] + t["up_bias"])
  close(method.after(leaves, {"x": jnp.asarray(x)}, jnp.asarray(branch), place, one), wanted)

  place = site("sublayer", (HIDDEN,), "attention_branch")
  leaves = made(method, place)
  method.before(leaves, {"x": jnp.asarray(x)}, place, one)
  inner = site("attention", (2, 2, 4), "attend")
  prefix = made(method, inner)
  k, v = draw(BATCH, LENGTH, 2, 4), draw(BATCH, LENGTH, 2, 4, seed=1)
  found = method.before(prefix, {"q": k, "k": jnp.asarray(k), "v": jnp.asarray(v), "mask": None}, inner, one)
  gate = torch_gate(tensors(leaves), x, mask)[..., None]
  close(found["k"], torch.cat([gate * torch.tensor(prefix["prefix_k"]), torch.tensor(k)], dim=1))
  close(found["v"], torch.cat([gate * torch.tensor(prefix["prefix_v"]), torch.tensor(v)], dim=1))
