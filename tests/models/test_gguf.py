"""GGUF files: a small one written by the gguf package, read back as a Hugging Face folder."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from peftjax import cli
from peftjax.data.inputs.chat import encode_chat, load_chat_template
from peftjax.data.inputs.tokenizing import IGNORED, load_tokenizer
from peftjax.errors import UserError
from peftjax.loading import from_config, load
from peftjax.models.family import checkpoint_axes, checkpoint_key, expanded
from peftjax.models.gguf import _LAYER_NAMES, _NAMES, halves_of, prepare_folder, read_config
from tests.models.decoder_models import assert_close, random_model, token_ids

TOKENS = [
  "<end>",
  "<|im_start|>",
  "<|im_end|>",
  *"abcdefghij",
  "ĠA",
  "ab",
  "cd",
  "Ġ",
  "Ċ",
  "u",
  "s",
  "r",
  "t",
  "n",
  "1",
]
TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
  "model_type": "llama",
  "vocab_size": len(TOKENS),
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "max_position_embeddings": 50,
  "tie_word_embeddings": True,
  "rope_theta": 77.0,
  "rms_norm_eps": 1e-5,
}


def interleaved(rows, heads):
  halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
  return np.ascontiguousarray(np.swapaxes(halves, 1, 2)).reshape(rows.shape)


def write(path, model, quantised=True, architecture="llama", split="smollm"):
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(2)
  writer.add_embedding_length(64)
  writer.add_feed_forward_length(96)
  writer.add_head_count(4)
  writer.add_head_count_kv(2)
  writer.add_context_length(50)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_rope_freq_base(77.0)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(split)
  writer.add_token_list(TOKENS)
  writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
  writer.add_token_merges(["a b", "c d"])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(2)
  writer.add_chat_template(TEMPLATE)
  flat = expanded(model.params, model.stacks)
  for name, (leaf, index) in flat.items():
    tree = model.params
    for part in leaf.split("."):
      tree = tree[part]
    value = np.asarray(tree if index is None else tree[index])
    value = value if checkpoint_axes(model.family, name, value.ndim) is None else value.T
    key, _, kind = checkpoint_key(model.family, name).rpartition(".")
    if key.endswith(("q_proj", "k_proj")):
      value = interleaved(value, 4 if "q_proj" in key else 2)
    theirs = _NAMES.get(key)
    if theirs is None:
      _, _, layer, rest = key.split(".", 3)
      theirs = f"blk.{layer}.{_LAYER_NAMES[rest]}"
    if quantised and value.ndim == 2:
      q8 = gguf.GGMLQuantizationType.Q8_0
      writer.add_tensor(f"{theirs}.{kind}", gguf.quantize(np.ascontiguousarray(value), q8), raw_dtype=q8)
    else:
      writer.add_tensor(f"{theirs}.{kind}", np.ascontiguousarray(value))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.fixture(scope="module")
def model():
  return random_model(CONFIG)


def test_weights_and_config_come_back(model, tmp_path, monkeypatch):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  write(tmp_path / "model.gguf", model, quantised=False)
  loaded = load(tmp_path / "model.gguf")
  assert loaded.config == from_config(loaded.hf_config).config
  assert loaded.config == model.config or loaded.config.rms_norm_eps == pytest.approx(1e-5)
  ids = token_ids(vocabulary=len(TOKENS))
  assert_close(loaded(input_ids=ids)["logits"], model(input_ids=ids)["logits"])
  loaded.save(tmp_path / "saved")
  assert_close(load(tmp_path / "saved")(input_ids=ids)["logits"], loaded(input_ids=ids)["logits"])
  assert (tmp_path / "saved" / "tokenizer.json").is_file()


def test_quantised_weights_are_near(model, tmp_path):
  write(tmp_path / "model.gguf", model)
  prepare_folder(tmp_path / "model.gguf", tmp_path / "folder")
  loaded = load(tmp_path / "folder")
  kernel = "model", "layers", "self_attn", "q_proj", "kernel"
  ours, theirs = loaded.params, model.params
  for part in kernel:
    ours, theirs = ours[part], theirs[part]
  assert 0 < np.abs(ours - theirs).max() < 0.01


def test_tokenizer_and_chat_template(model, tmp_path):
  write(tmp_path / "model.gguf", model, quantised=False)
  prepare_folder(tmp_path / "model.gguf", tmp_path / "folder")
  tokenizer = load_tokenizer(tmp_path / "folder", max_length=64)
  ids, _ = tokenizer.encode_with_places("<|im_start|>abcd11<|im_end|>")
  assert [TOKENS[index] for index in ids] == ["<|im_start|>", "ab", "cd", "1", "1", "<|im_end|>"]
  assert tokenizer.pad_id == 2
  template = load_chat_template(tmp_path / "folder")
  messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
  assert template.render(messages[:1], asks_for_answer=True).endswith("ab<|im_end|>\n<|im_start|>assistant\n")
  ids, labels = encode_chat(tokenizer, template, messages)
  answer = [TOKENS[label] for label in labels if label != IGNORED]
  assert answer[:2] == ["cd", "<|im_end|>"]
  assert all(label in (IGNORED, token) for label, token in zip(labels, ids))


def test_halves_of_is_the_inverse_of_interleaving():
  rows = np.arange(24 * 3).reshape(24, 3)
  np.testing.assert_array_equal(halves_of(interleaved(rows, 2), 2), rows)
  assert halves_of(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_biases_of_q_and_k_come_back(tmp_path, monkeypatch):
  """Their entries are laid in pairs, as the rows of the kernels are."""
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  model = random_model(CONFIG | {"attention_bias": True})
  write(tmp_path / "model.gguf", model, quantised=False)
  ids = token_ids(vocabulary=len(TOKENS))
  assert_close(load(tmp_path / "model.gguf")(input_ids=ids)["logits"], model(input_ids=ids)["logits"])


@pytest.mark.parametrize(("options", "words"), [({"split": "smolm"}, "did you mean 'smollm'")])
def test_what_cannot_be_read_is_said(model, tmp_path, options, words):
  write(tmp_path / "model.gguf", model, quantised=False, **options)
  with pytest.raises(UserError, match=words):
    prepare_folder(tmp_path / "model.gguf", tmp_path / "folder")


def test_a_truncated_file_is_refused(model, tmp_path):
  write(tmp_path / "model.gguf", model, quantised=False)
  content = (tmp_path / "model.gguf").read_bytes()
  (tmp_path / "short.gguf").write_bytes(content[: len(content) // 3])
  with pytest.raises(UserError, match=r"short\.gguf is no whole GGUF file"):
    read_config(tmp_path / "short.gguf")
  assert json.dumps(read_config(tmp_path / "model.gguf"))


def test_the_command_line_generates_from_a_file_and_ends_at_a_stop_string(model, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("PEFTJAX_CACHE", str(tmp_path / "cache"))
  write(tmp_path / "model.gguf", model)
  arguments = ["generate", f"--model={tmp_path / 'model.gguf'}", "--prompt=abcd", "--max_new_tokens=12"]
  assert cli.main([*arguments, "--json"]) == 0
  free = json.loads(capsys.readouterr().out)["text"]
  assert len(free) > 3
  assert cli.main(arguments) == 0
  assert capsys.readouterr().out.rstrip("\n") == free.rstrip("\n")
  assert cli.main([*arguments, "--json", f"--stop={free[2:4]}"]) == 0
  assert json.loads(capsys.readouterr().out)["text"] == free[: free.index(free[2:4])]
  assert cli.main([*arguments, "--top_p=much"]) == 2
  assert "--top_p: expected float, got 'much'" in capsys.readouterr().err
