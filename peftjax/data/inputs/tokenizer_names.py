"""Which tokenizer class reads a folder, by the names in its files: as transformers' `AutoTokenizer` chooses."""

from __future__ import annotations

from collections.abc import Callable

from peftjax.data.inputs.tokenizer_classes import BARE, BUILT, GENERIC
from peftjax.errors import UserError

_ALIASES = {
  "BertTokenizer": "Lxmert MobileBert SqueezeBert ConvBert",
  "RobertaTokenizer": "Bart LED Mvp",
  "AlbertTokenizer": "FNet",
}

# Classes that transformers knows and that make their tokenizer in ways that are not written down here.
_ELSEWHERE = """
  Barthez Bartpho BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot BlenderbotSmall ByT5 CTRL Camembert
  Canine Clvp CodeGen CodeLlama Cohere Cpm CpmAnt DPRContextEncoder DPRQuestionEncoder DPRReader Dia Esm Esmc FSMT
  FastSpeech2Conformer Flaubert Funnel GPTNeoXJapanese GPTSw3 Herbert Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke M2M100
  MBart MBart50 MLuke Marian MarkupLM Mgpstr MyT5 Nllb Nougat OpenAIGPT PLBart Pegasus Perceiver Phobert Pop2Piano
  ProphetNet Rag Reformer RemBert RoCBert RoFormer SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter Tapas
  Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC XGLM XLM XLNet
"""

# class -> the model_types it belongs to, for folders that name no class or a wrong one
_TYPES = {
  "BertTokenizer": """
    bert blip chinese_clip convbert distilbert electra ernie flava git layoutlm megatron-bert nezha nomic_bert qdqbert
    retribert squeezebert vilt visual_bert
  """,
  "RobertaTokenizer": """
    bart bridgetower clap data2vec-text ibert lilt longformer mega mra roberta roberta-prelayernorm
  """,
  "GPT2Tokenizer": "blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj jais2 opt phi starcoder2",
  "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
  "Qwen2Tokenizer": "qwen2 qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl",
  "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
  "GemmaTokenizer": """
    gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma shieldgemma2 t5gemma
  """,
  "LlamaTokenizer": "idefics idefics2",
  "T5Tokenizer": "mt5 musicgen musicgen_melody switch_transformers t5",
  "XLMRobertaTokenizer": "gte metaclip_2 trocr xlm-roberta xmod",
  "CLIPTokenizer": "aimv2 clip clipseg groupvit owlv2 owlvit xclip",
  "AlbertTokenizer": "albert yoso",
  "DebertaTokenizer": "deberta",
  "DebertaV2Tokenizer": "deberta-v2",
  "MPNetTokenizer": "mpnet",
  "WhisperTokenizer": "whisper",
  GENERIC: """
    aria bigbird_pegasus flex_olmo glm glm4 glm4_moe gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared
    ministral ministral3 mistral mistral3 mixtral nystromformer olmo2 olmo3 pegasus_x persimmon stablelm umt5 voxtral
    xlm-roberta-xl
  """,
}

# model_types whose published folders name a wrong class
_WRONGLY_NAMED = """
  arctic ernie4_5 ernie4_5_moe fuyu internlm2 internlm3 jamba llava llava_next minicpm3 minimax_m2 modernbert
  modernbert-decoder molmo nemotron phi3 phi3_v phimoe qwen2 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen4_exp smolvlm
  vipllava
"""


def _by_name(table: dict[str, str]) -> dict[str, str]:
  return {name: kind for kind, names in table.items() for name in names.split()}


_KIND_OF_ALIAS, _KIND_OF_TYPE = _by_name(_ALIASES), _by_name({GENERIC: _WRONGLY_NAMED}) | _by_name(_TYPES)


def class_of(model_type: str, named: str, is_byte_level: Callable[[], bool]) -> str:
  """The class of `tokenizer_classes.BUILT` that reads a folder.

  Args:
    model_type: as config.json has it.
    named: tokenizer_config.json's `tokenizer_class`, or config.json's; empty if neither has one.
    is_byte_level: whether tokenizer.json splits texts into bytes.

  Raises:
    UserError: a class that makes its tokenizer in a way that is not known here.
  """
  named = named.removesuffix("Fast")
  registered = _KIND_OF_TYPE.get(model_type, "")
  if named == "LlamaTokenizer" and model_type not in _WRONGLY_NAMED.split() and is_byte_level():
    return GENERIC  # Llama 3's files name the class of Llama 2
  if named and registered and named != registered:
    chosen = registered if registered == GENERIC or model_type in _WRONGLY_NAMED.split() else named
  else:
    chosen = named or registered
  stem = chosen.removesuffix("Tokenizer")
  if stem in _ELSEWHERE.split():
    known = ", ".join(name for name in BUILT if name != BARE)
    raise UserError(f"tokenizer_class={chosen!r} makes its tokenizer in a way that is not known here; known: {known}")
  chosen = _KIND_OF_ALIAS.get(stem, chosen)
  return chosen if chosen in BUILT else GENERIC
