"""What the tokenizer files of a Hugging Face folder say together, as transformers' `AutoTokenizer` reads them.

A tokenizer is more than ``tokenizer.json``: ``tokenizer_config.json`` names its class, its special and added tokens and
its switches, ``special_tokens_map.json`` and ``added_tokens.json`` say the same in older folders, and ``config.json``
decides where none of them names a class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from peftjax.data.inputs.tokenizer_classes import BARE, BUILT, GENERIC, Parts
from peftjax.data.inputs.tokenizer_names import class_of
from peftjax.errors import UserError
from peftjax.files import read_json

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclasses.dataclass(frozen=True)
class TokenizerFolder:
  """A folder's tokenizer before it has a length to cut at.

  Attributes:
    fast: the tokenizer, nothing cut and nothing padded.
    kind: the class that made it, such as "BertTokenizer"; "TokenizersBackend" for what tokenizer.json says alone.
    tokens: role ("eos_token", and roles of the folder's own) -> token.
    gives_type_ids: the class or the folder's `model_input_names` ask for token type ids.
    truncation_side: which end of a long text is cut, "left" or "right".
    padding_side: which side transformers pads on.
    model_max_length: tokens of the longest sequence that the model was made for; None if the folder does not say.
    cleans_up: decoding takes out the spaces before punctuation.
    splits_special_tokens: special tokens in a text are text.
    stated_size: one more than the highest id that the files name; what the class alone names comes behind them.
    pad_id: the id that fills up; where a decoder has none any id does, since padding is masked.
    eos_id: what ends a text: the folder's token, else config.json's id, else the class's.
  """

  fast: tokenizers.Tokenizer
  kind: str
  tokens: Mapping[str, str]
  gives_type_ids: bool
  truncation_side: str
  padding_side: str
  model_max_length: int | None
  cleans_up: bool
  splits_special_tokens: bool
  stated_size: int
  pad_id: int
  eos_id: int | None


class Settings:
  """The settings files of a folder, read together, every value that is asked for checked.

  Attributes:
    folder: where they lie.
    kind: the class of the tokenizer.
    kind_is_named: a file names it.
    lists_extra_tokens: tokenizer_config.json does, be the list empty.
    values: name -> value; special tokens as str or `AddedToken`.
    added: id -> token that a file adds to the vocabulary.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self._model = _optional(folder / "config.json")
    path = folder / "tokenizer_config.json"
    self.values: dict[str, Any] = _optional(path)
    self._path = path if path.is_file() else folder
    if self.values.get("fast_tokenizer_files", ["tokenizer.json"]) != ["tokenizer.json"]:
      raise UserError(f"{path}: fast_tokenizer_files names several tokenizers; only tokenizer.json can be read")
    named = self.text("tokenizer_class") or _text(self._model, "tokenizer_class", folder / "config.json")
    self.kind_is_named = bool(named)
    self.kind = class_of(_text(self._model, "model_type", folder / "config.json"), named, self._is_byte_level)
    if self.kind == GENERIC and not named and self.tokenizer_json is None:
      self.kind = next((kind for kind in ("BertTokenizer", BARE) if self._has(BUILT[kind].files)), GENERIC)
    if self.tokenizer_json is not None:  # whose post-processor says it
      self.values.pop("add_bos_token", None)
      self.values.pop("add_eos_token", None)
    self.lists_extra_tokens = any(
      isinstance(self.values.get(name), list) for name in ("extra_special_tokens", "additional_special_tokens")
    )
    self.added = self._added_tokens()
    by_text = {token.content: token for token in self.added.values()}
    for role in ROLES:
      if self.values.get(role) is not None:
        token = _token(self.values[role], f"{self._path}: {role}")
        self.values[role] = by_text.get(str(token), token)

  @functools.cached_property
  def tokenizer_json(self) -> dict[str, Any] | None:
    """What is in tokenizer.json; None if there is none."""
    path = self.folder / "tokenizer.json"
    return read_json(path) if path.is_file() else None

  def text(self, name: str) -> str:
    return _text(self.values, name, self._path)

  def flag(self, name: str, default: bool | None) -> Any:
    """A boolean setting; `default` where there is none or it is null."""
    value = self.values.get(name)
    if value is not None and not isinstance(value, bool):
      raise UserError(f"{self._path}: {name}={value!r:.60}, expected true or false")
    return default if value is None else value

  def side(self, name: str, default: str) -> str:
    value = self.values.get(name, default)
    if value not in ("left", "right"):
      raise UserError(f"{self._path}: {name}={value!r:.60}, expected 'left' or 'right'")
    return str(value)

  def names(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = self.values.get(name, list(default))
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
      raise UserError(f"{self._path}: {name}={value!r:.60}, expected a list of names")
    return tuple(value)

  def number(self, name: str) -> int | None:
    """A positive count; None if it is not there or, as 10^30 is written, means without end."""
    value = self.values.get(name)
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
      raise UserError(f"{self._path}: {name}={value!r:.60}, expected a positive number")
    return int(value) if value < 2**31 else None

  def stated_id(self, name: str) -> int | None:
    """A token's id in config.json, the first where it lists several."""
    value = self._model.get(name)
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

  @functools.cached_property
  def special(self) -> dict[str, str | AddedToken]:
    """Role -> special token, the class's own where the folder names none."""
    made = BUILT[self.kind]
    tokens = {role: self.values.get(role, made.tokens.get(role)) for role in ROLES}
    if made.wraps is not None:
      tokens |= {role: made.wraps(role, token) for role, token in tokens.items() if isinstance(token, str)}
    return {role: token for role, token in tokens.items() if token is not None} | self._own_roles

  @functools.cached_property
  def extra(self) -> list[str | AddedToken]:
    """Special tokens without a role."""
    value = self.values.get("extra_special_tokens")
    if not value or isinstance(value, dict):
      value = self.values.get("additional_special_tokens") or []
    if not isinstance(value, list):
      raise UserError(f"{self._path}: extra_special_tokens={value!r:.60}, expected a list of tokens")
    return [_token(one, f"{self._path}: extra_special_tokens") for one in value]

  @functools.cached_property
  def _own_roles(self) -> dict[str, str | AddedToken]:
    """Special tokens with roles that only this folder has, such as image_token."""
    extra = self.values.get("extra_special_tokens")
    found = {name: value for name, value in self.values.items() if name.endswith("_token") and isinstance(value, str)}
    found |= extra if isinstance(extra, dict) else {}
    return {name: _token(value, f"{self._path}: {name}") for name, value in found.items() if name not in ROLES}

  def _has(self, names: tuple[str, ...]) -> bool:
    return all((self.folder / name).is_file() for name in names)

  def _is_byte_level(self) -> bool:
    path = self.folder / "tokenizer.json"
    return path.is_file() and b'"ByteLevel"' in path.read_bytes()

  def _added_tokens(self) -> dict[int, AddedToken]:
    stated = self.values.get("added_tokens_decoder")
    if stated is not None:
      if not isinstance(stated, dict):
        raise UserError(f"{self._path}: added_tokens_decoder={stated!r:.60}, expected an object of tokens by id")
      return {_index(key, self._path): _added(token, self._path) for key, token in stated.items()}
    found: dict[int, AddedToken] = {}
    path = self.folder / "special_tokens_map.json"  # of transformers 4 and older, as is added_tokens.json
    for name, value in _optional(path).items():
      if isinstance(value, dict) and name != "extra_special_tokens":
        value = _added({**value, "special": True}, path)
      if name == "extra_special_tokens" and isinstance(value, list):
        value = [*self.extra, *(one for one in value if one not in self.extra)]
        self.__dict__.pop("extra", None)
      self.values[name] = value
    path = self.folder / "added_tokens.json"
    special = {str(token) for role in ROLES if (token := self.values.get(role))}
    if not isinstance(self.values.get("extra_special_tokens"), dict):
      special |= {str(token) for token in self.extra}
    for token, index in _optional(path).items():
      is_special = token in special
      found[_index(index, path)] = AddedToken(token, normalized=not is_special, special=is_special)
    where = self.folder / "tokenizer.json"
    listed = (self.tokenizer_json or {}).get("added_tokens") or []
    if not isinstance(listed, list):
      raise UserError(f"{where}: added_tokens={listed!r:.60}, expected a list of tokens")
    for token in listed:
      found[_index(token.get("id") if isinstance(token, dict) else None, where)] = _added(token, where)
    return found


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
  """Makes one line of what the library raises: bare `Exception`s, and its panics, which are no `Exception`s."""
  try:
    yield
  except UserError:
    raise
  except BaseException as error:
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
      raise UserError(f"{what}: {error}") from None
    raise


def read_tokenizer(folder: str | Path) -> TokenizerFolder:
  """The tokenizer of a model folder.

  Raises:
    UserError: there is none, a file is damaged, or the class is one that cannot be built here.
  """
  folder = Path(folder)
  settings = Settings(folder)
  made = BUILT[settings.kind]
  with refusing(f"the tokenizer files in {folder} are damaged"):
    fast, truncation = _built(settings)
    _add_tokens(fast, settings)
    _set_post_processor(fast, settings)
  inputs = settings.names("model_input_names", ("token_type_ids",) if made.gives_type_ids else ())
  return TokenizerFolder(
    fast=fast,
    kind=settings.kind,
    tokens={role: str(token) for role, token in settings.special.items()},
    gives_type_ids="token_type_ids" in inputs,
    truncation_side=settings.side("truncation_side", str(truncation.get("direction", "right"))),
    padding_side=settings.side("padding_side", made.padding_side),
    model_max_length=settings.number("model_max_length"),
    cleans_up=bool(settings.flag("clean_up_tokenization_spaces", False)) and type(fast.model) is not models.BPE,
    splits_special_tokens=settings.flag("split_special_tokens", False),
    stated_size=_stated_size(fast, settings),
    pad_id=_pad_id(fast, settings),
    eos_id=_eos_id(fast, settings),
  )


def special_tokens(folder: str | Path) -> dict[str, str]:
  """Role -> special token, without building the tokenizer."""
  return {role: str(token) for role, token in Settings(Path(folder)).special.items()}


def _built(settings: Settings) -> tuple[tokenizers.Tokenizer, Mapping[str, Any]]:
  """(the tokenizer, how tokenizer.json cuts)."""
  made, stated = BUILT[settings.kind], settings.tokenizer_json
  path = settings.folder / "tokenizer.json"
  if settings.kind == GENERIC:
    if stated is None:
      others = "" if settings.kind_is_named else ", vocab.txt, or vocab.json with merges.txt"
      raise UserError(f"{settings.folder} has no tokenizer.json{others}{_what_else(settings.folder)}")
    fast = tokenizers.Tokenizer.from_file(str(path))
    truncation: Mapping[str, Any] = fast.truncation or {}
    padding: Mapping[str, Any] = fast.padding or {}
  else:
    parts = Parts.of_json(stated, made.model, path) if stated else Parts.of_files(settings.folder, made.files)
    if parts is None:
      files = f" or {' with '.join(made.files)}" if made.files else ""
      raise UserError(f"{settings.folder} has no tokenizer.json{files}{_what_else(settings.folder)}")
    fast, truncation, padding = made.build(parts, settings), parts.truncation, parts.padding
    if parts.post_processor is not None:
      fast.post_processor = parts.post_processor
  if padding:
    settings.values.setdefault("padding_side", padding["direction"])
    if made.takes_padding:
      settings.values.setdefault("pad_token", padding["pad_token"])
  fast.no_padding()
  fast.no_truncation()
  return fast, truncation


def _add_tokens(fast: tokenizers.Tokenizer, settings: Settings) -> None:
  """Tokens that a file adds, then special tokens that the vocabulary does not know as such yet."""
  adding: list[str | AddedToken] = [token for _, token in sorted(settings.added.items())]
  known = {token.content for token in fast.get_added_tokens_decoder().values()} | {str(token) for token in adding}
  for token in [*settings.special.values(), *settings.extra, *BUILT[settings.kind].extra(settings)]:
    if str(token) not in known and token not in adding:
      adding.append(token)
  named = {str(token) for token in settings.special.values()}
  fast.add_tokens([_as_special(token, named) for token in adding])
  if BUILT[settings.kind].resets_flags:
    special = dict.fromkeys([*map(str, settings.special.values()), *map(str, settings.extra)])
    fast.add_tokens([AddedToken(token, special=True) for token in special])


def _as_special(token: str | AddedToken, named: set[str]) -> AddedToken:
  if isinstance(token, str):
    return AddedToken(token, special=True)
  if token.content in named:
    token.special = True  # a copy would settle `normalized`, which follows from it where nothing is said
  return token


def _set_post_processor(fast: tokenizers.Tokenizer, settings: Settings) -> None:
  made = BUILT[settings.kind]
  said = {name: settings.flag(name, made.adds.get(name, False)) for name in ("add_bos_token", "add_eos_token")}
  if fast.post_processor is None or made.adds or not settings.values.keys().isdisjoint(said):
    fast.post_processor = _template(fast, settings, **said)
  finished = made.finish(fast, settings)
  if finished is not None:
    fast.post_processor = finished


def _template(
  fast: tokenizers.Tokenizer, settings: Settings, add_bos_token: bool, add_eos_token: bool
) -> processors.PostProcessor:
  """The start token before each text and the end token behind it, as far as they are asked for and there are any."""
  roles = {"bos_token": add_bos_token, "eos_token": add_eos_token}
  tokens = {role: str(settings.special[role]) for role, asked in roles.items() if asked and role in settings.special}
  start, end = (tokens.get(role) for role in roles)

  def around(text: str, number: int) -> list[str]:
    return [f"{one}:{number}" for one in (start, text, end) if one is not None]

  return processors.TemplateProcessing(
    single=around("$A", 0),
    pair=around("$A", 0) + around("$B", 1),
    special_tokens=[(token, fast.token_to_id(token)) for token in dict.fromkeys(tokens.values())],
  )


def _stated_size(fast: tokenizers.Tokenizer, settings: Settings) -> int:
  made = BUILT[settings.kind]
  named = {str(settings.special[role]) for role in settings.special if settings.values.get(role) or role not in ROLES}
  unnamed = {str(token) for token in [*made.tokens.values(), *made.extra(settings)]} - named
  unnamed -= {token.content for token in settings.added.values()} | {str(token) for token in settings.extra}
  behind = fast.get_vocab_size(with_added_tokens=False)
  ids = fast.get_vocab(with_added_tokens=True)
  return 1 + max((index for token, index in ids.items() if index < behind or token not in unnamed), default=-1)


def _pad_id(fast: tokenizers.Tokenizer, settings: Settings) -> int:
  for token in (settings.special.get("pad_token"), "[PAD]", "<pad>", settings.special.get("eos_token")):
    if token is not None and (index := fast.token_to_id(str(token))) is not None:
      return int(index)
  return settings.stated_id("pad_token_id") or 0


def _eos_id(fast: tokenizers.Tokenizer, settings: Settings) -> int | None:
  stated = None if settings.values.get("eos_token") else settings.stated_id("eos_token_id")
  if stated is not None or "eos_token" not in settings.special:
    return stated
  index: int | None = fast.token_to_id(str(settings.special["eos_token"]))
  return index


def _optional(path: Path) -> dict[str, Any]:
  return read_json(path) if path.is_file() else {}


def _text(values: Mapping[str, Any], name: str, path: Path) -> str:
  value = values.get(name)
  if value is not None and not isinstance(value, str):
    raise UserError(f"{path}: {name}={value!r:.60}, expected a string")
  return value or ""


def _token(value: Any, where: str) -> str | AddedToken:
  if isinstance(value, str | AddedToken):
    return value
  return _added(value, where)


def _added(value: Any, where: object) -> AddedToken:
  if not isinstance(value, dict) or not isinstance(value.get("content"), str):
    raise UserError(f"{where}: a token {value!r:.60}, expected a string or an object with content")
  flags = {name: value[name] for name in _FLAGS if name in value}
  if not all(isinstance(flag, bool) for flag in flags.values()):
    raise UserError(f"{where}: token {value['content']!r:.40}: its flags are true or false, not {flags!r:.80}")
  return AddedToken(value["content"], **flags)


def _index(value: Any, where: object) -> int:
  if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
    raise UserError(f"{where}: the id of a token is {value!r:.40}, expected a number from 0")
  return value


def _what_else(folder: Path) -> str:
  found = [path.name for path in sorted(folder.glob("*.model"))]
  return f"; {found[0]} is read by transformers, whose save_pretrained writes tokenizer.json" if found else ""
