"""Gemma 3 in GGUF against transformers: weights under gguf's own names for them, and SentencePiece's tokens."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from peftjax import load
from peftjax.data.inputs.tokenizing import load_tokenizer
from peftjax.models.gguf import GGUFCheckpoint, prepare_folder

LAYERS, WINDOW = 7, 4  # the sixth layer of each six attends to all
TEXTS = ["low lower lowest", "a new  newer é\n widest", "  wider 🙂 lows", ""]
KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0")


@pytest.fixture(scope="module")
def oracle():
  """A small random Gemma 3, and the BPE tokenizer of which its pieces are."""
  torch.manual_seed(0)
  trained = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
  trained.normalizer = tokenizers.normalizers.Replace(" ", "▁")
  specials = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=specials, show_progress=False)
  trained.train_from_iterator(["low lower lowest new newer newest wide wider widest\n"] * 9, trainer)
  config = transformers.Gemma3TextConfig(
    vocab_size=trained.get_vocab_size(), hidden_size=24, intermediate_size=40, num_hidden_layers=LAYERS,
    num_attention_heads=4, num_key_value_heads=2, head_dim=10, max_position_embeddings=60, sliding_window=WINDOW,
    query_pre_attn_scalar=10, layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    attn_implementation="eager",
  )  # fmt: skip
  model = transformers.Gemma3ForCausalLM(config).eval()
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  return model, trained


def write(path, model, trained):
  config, state = model.config, model.state_dict()
  writer = gguf.GGUFWriter(path, "gemma3")
  writer.add_block_count(LAYERS)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(1e6)
  writer.add_sliding_window(WINDOW)
  vocabulary = trained.get_vocab()
  tokens = sorted(vocabulary, key=vocabulary.get)
  kinds = [3, 3, 3, 2] + [6] * 256 + [1] * (len(tokens) - 260)
  writer.add_tokenizer_model("llama")
  writer.add_tokenizer_pre("default")
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_scores([0.0 if kind != 1 else float(260 - at) for at, kind in enumerate(kinds)])
  for name, at in (("bos", 2), ("eos", 1), ("unk", 3), ("pad", 0)):
    getattr(writer, f"add_{name}_token_id")(at)
  writer.add_add_space_prefix(False)
  writer.add_add_bos_token(True)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, LAYERS)
  for key, value in state.items():
    if key == "lm_head.weight":
      continue  # tied
    value = value.numpy() + (1 if key.endswith("norm.weight") else 0)  # as llama.cpp's converter stores norms
    writer.add_tensor(names.get_name(key, try_suffixes=(".weight",)), np.ascontiguousarray(value, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_logits_and_tokens(oracle, tmp_path):
  model, trained = oracle
  write(tmp_path / "model.gguf", model, trained)
  prepare_folder(tmp_path / "model.gguf", tmp_path / "folder")
  loaded = load(tmp_path / "folder")
  ids = np.random.default_rng(0).integers(0, trained.get_vocab_size(), (2, 13))
  with torch.no_grad():
    wanted = model(torch.tensor(ids)).logits.numpy()
  assert np.allclose(loaded(input_ids=ids)["logits"], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
  tokenizer = load_tokenizer(tmp_path / "folder")
  for text in TEXTS:
    assert tokenizer.encode([text]).ids[0].tolist() == [2, *trained.encode(text).ids], text
  assert tokenizer.decode(tokenizer.encode([TEXTS[1]]).ids[0].tolist()) == TEXTS[1]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_are_those_of_the_reference(kind, tmp_path, monkeypatch):
  quantization = gguf.GGMLQuantizationType[kind]
  block, size = gguf.GGML_QUANT_SIZES[quantization]
  rows, width = 7, 2 * block
  random = np.random.default_rng(0)
  stored = random.integers(0, 256, (rows, 2, size), dtype=np.uint8)
  halves = stored.view(np.float16)  # scales among them stay finite
  halves[~np.isfinite(halves)] = 0.5
  stored = stored.reshape(rows, -1)
  writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
  writer.add_tensor("blk.0.ffn_up.weight", stored, raw_dtype=quantization)
  writer.add_tensor("token_embd.weight", np.zeros((2, 4), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  monkeypatch.setattr("peftjax.models.gguf.BLOCK_BYTES", 4 * width * 3)  # three rows at a time
  parts = list(GGUFCheckpoint(tmp_path / "model.gguf").blocks("model.layers.0.mlp.up_proj.weight"))
  assert len(parts) == 3
  whole = np.concatenate([part for _, part in parts])
  assert np.array_equal(whole, gguf.dequantize(stored, quantization)) and whole.shape == (rows, width)
