"""Every field of config.json is read, refused or passed over; wrong types and values out of range take one line."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest
import transformers
import transformers.masking_utils
import transformers.modeling_rope_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, model_type_to_module_name

from peftjax.errors import UserError
from peftjax.loading import from_config
from peftjax.models.config_fields import MOST_LAYERS
from peftjax.models.family import MODEL
from peftjax.models.registry import FAMILIES

# Those of transformers; diffusers' own are in tests/oracles/.
TYPES = [name for name, one in FAMILIES.items() if name != "deci" and one.weights == MODEL]
# Numbers whose default is computed when transformers makes the config.
COMPUTED = {"rope_parameters", "scale_decoder_outputs"}


def config_class(model_type):
  return CONFIG_MAPPING[model_type]


@pytest.mark.parametrize("model_type", TYPES)
def test_every_field_of_transformers_stands_in_one_place(model_type):
  table = FAMILIES[model_type].table
  theirs = {field.name for field in dataclasses.fields(config_class(model_type))}
  places = [set(table.read), set(table.refused), set(table.ignored)]
  assert theirs <= set.union(*places), theirs - set.union(*places)
  assert sum(map(len, places)) == len(set.union(*places))
  spelled = {frozenset(pair) for pair in table.spellings.items()}
  assert {frozenset(pair) for pair in config_class(model_type).attribute_map.items()} <= spelled


# What transformers' code asks a config for besides its fields, and why it changes nothing here.
ASKED = {
  "_attn_implementation": "how attention is computed, not what",
  "output_attentions": "outputs that are not offered",
  "default_theta": "a method of the config",
  "per_layer_config": "refused in all families",
  "standardize_rope_params": "a method of the config",
  "get_text_config": "a method of the config",
  "n_positions": "a word of a docstring",
  "classifier_dropout": "the rate of the classifier of tokens, which decoders do not have here",
  "hidden_dropout": "the same",
  "summary_last_dropout": "the same, by another name",
  **dict.fromkeys(("image_token_id", "mm_tokens_per_image", "text_config", "vision_config"), "of Gemma 3 with images"),
}


def names_asked(path):
  text = Path(path).read_text(encoding="utf-8")
  given = re.findall(r"\bconfig\.([a-zA-Z_]\w*)", text)
  return {*given, *re.findall(r"""getattr\((?:self\.)?config,\s*["'](\w+)["']""", text)}


@pytest.mark.parametrize("model_type", TYPES)
def test_every_name_that_transformers_code_asks_for_stands_in_a_place(model_type):
  """Not fields alone: what stands in config.json besides becomes an attribute, and some attributes are looked for."""
  table, module = FAMILIES[model_type].table, model_type_to_module_name(model_type)
  modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
  asked = names_asked(modeling.__file__) | ({"is_causal"} & names_asked(transformers.masking_utils.__file__))
  if "rope_parameters" in table.read:
    asked |= {"head_dim"} & names_asked(transformers.modeling_rope_utils.__file__)
  places = {*table.read, *table.refused, *table.ignored, *table.spellings, *table.spellings.values()}
  assert "is_causal" in asked and not asked - places - ASKED.keys()


@pytest.mark.parametrize("model_type", TYPES)
def test_what_config_json_leaves_out_is_what_transformers_takes(model_type):
  table = FAMILIES[model_type].table
  for field in dataclasses.fields(config_class(model_type)):
    if field.name in table.read and field.name not in COMPUTED:
      assert table.read[field.name].default == field.default, field.name
    if field.name in table.refused:
      assert any(field.default == value for value in table.refused[field.name].values), field.name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_value_of_another_type_is_refused_by_its_name(model_type):
  family = FAMILIES[model_type]
  for name, field in family.table.read.items():
    wrong = [{"no": 1}] if "label" in name else [{"no": [1]}, float("nan"), 10**400, -(10**12), "no", None]
    for value in wrong:
      try:
        found = field.kind(value)
      except ValueError:
        with pytest.raises(UserError, match=f"config.json: {name}="):
          family.parse({"model_type": model_type, name: value})
      else:
        assert found in ("no", None, -1e12) or isinstance(value, dict), (name, value)


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer", "num_layers"])
@pytest.mark.parametrize("layers", [MOST_LAYERS + 1, 2 * 10**5, 3 * 10**9, 0, -1])
def test_layers_out_of_range_are_refused_before_shapes_are_built(name, layers):
  model_type = {"num_hidden_layers": "llama", "n_layer": "gpt2", "num_layers": "t5"}[name]
  with pytest.raises(UserError, match=f"{name}={layers}: expected a whole number from 1 to {MOST_LAYERS}"):
    from_config({"model_type": model_type, name: layers})


@pytest.mark.parametrize(
  ("model_type", "changed", "said"),
  [
    ("bert", {"is_decoder": True}, "is_decoder=true: layers that see earlier tokens alone; expected false"),
    ("llama", {"is_causal": False}, "is_causal=false: attention to later tokens"),
    ("t5", {"dense_act_fn": "relu", "feed_forward_proj": "gated-gelu"}, 'dense_act_fn="relu": .* says "gelu_new"'),
    ("t5", {"is_gated_act": True}, "is_gated_act=true: feed_forward_proj says false"),
    ("gpt_neox", {"head_dim": 32}, "head_dim=32: expected 96"),
    ("bert", {"position_embedding_type": "relative_key"}, 'expected "absolute" or null'),
    ("gpt2", {"add_cross_attention": True}, "attention to an encoder"),
    ("gpt2", {"n_embd": 768, "hidden_size": 1024}, "are the same field"),
    ("gpt2", {"n_head": 7}, "768 hidden features do not divide among 7 heads"),
    ("gptj", {"rotary_dim": 300}, "an even number up to 256"),
    ("gpt_neox", {"partial_rotary_factor": 0.5}, "transformers reads rotary_pct, 0.25"),
    ("llama", {"rope_theta": -1.0}, "rope_theta=-1.0: expected a number above 0"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rotates whole heads"),
    ("llama", {"partial_rotary_factor": 0.5}, "rotates whole heads"),
    ("llama", {"rope_scaling": {"type": "llama3", "factor": 8}}, "'llama3' needs a low_freq_factor"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, 'factor="2": expected a finite number above 0'),
    ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "unknown rope_type 'longrope'"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantised by another library"),
    ("llama", {"architectures": "LlamaModel"}, "architectures=.*: expected a list"),
    ("llama", {"id2label": ["a", "b"]}, "id2label=.*: expected an object of label names"),
    ("mistral", {"layer_types": ["full_attention"] * 32}, "all layers of this model have the same type"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok=9: there are 8 experts"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "transformers does not apply it"),
    ("gemma2", {"use_bidirectional_attention": True}, "attention to later tokens"),
    ("opt", {"layerdrop": 0.1}, "layers that training leaves out"),
    ("roberta", {"pad_token_id": None}, "pad_token_id=null: expected a whole number"),
    ("roberta", {"pad_token_id": 511}, "positions start behind it, and there are 512"),
    ("t5", {"feed_forward_proj": "gated-gelu-new"}, "expected ACT or gated-ACT"),
    ("t5", {"vocab_size": 300, "decoder_start_token_id": 300}, "decoder_start_token_id=300: the decoder reads it, and"),
    ("t5", {"pad_token_id": -1}, "pad_token_id=-1: the decoder reads it, and there are 32128 tokens"),
    ("t5", {"dropout_rate": 1.0}, "dropout_rate=1.0: expected a number of at least 0 and below 1"),
    ("bert", {"hidden_dropout_prob": True}, "hidden_dropout_prob=true: expected a finite number"),
    ("bert", {"hidden_size": 768.0}, "hidden_size=768.0: expected a whole number"),
    ("bert", {"hidden_act": "gleu"}, "unknown activation 'gleu'; did you mean 'gelu'"),
    (["bert"], {}, r"model_type=\[\"bert\"\]: expected a text"),
  ],
)
def test_what_is_not_computed_or_not_possible_takes_one_line(model_type, changed, said):
  with pytest.raises(UserError, match=said):
    from_config({"model_type": model_type, **changed})


def test_null_means_none_where_transformers_has_one():
  for name in ("attn_logit_softcapping", "final_logit_softcapping"):
    assert getattr(FAMILIES["gemma2"].parse({"model_type": "gemma2", name: None}), name) is None
    assert (
      getattr(FAMILIES["gemma2"].parse({"model_type": "gemma2"}), name) == transformers.Gemma2Config().to_dict()[name]
    )


def test_a_config_as_transformers_writes_it_is_taken_as_it_is():
  for model_type in set(TYPES) - {"detr"}:  # whose default backbone is timm's, which is refused
    written = json.loads(config_class(model_type)().to_json_string(use_diff=False))
    config = FAMILIES[model_type].parse({**written, "model_type": model_type})
    # Its own defaults written out mean the same as nothing at all.
    assert config == FAMILIES[model_type].parse({"model_type": model_type})
