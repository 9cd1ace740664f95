"""CLIP from the command line: pairs told apart, classes by prompts, as transformers' processor and model do it."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from peftjax import cli
from peftjax import config as configs
from peftjax.tasks.image_text import ImageTextContrastive
from peftjax.train import finished, loop
from tests.data.pictures import coloured
from tests.oracles.pipelines import LENGTH, widened, write_tokenizer

VISION = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 12, "patch_size": 4}  # fmt: skip
TEXT = {"hidden_size": 10, "intermediate_size": 14, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": LENGTH}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """With a CLIP as transformers saves it, and pictures by their colour's name."""
  root = tmp_path_factory.mktemp("clip")
  tokenizer = write_tokenizer(root / "clip")
  ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
  text = {**TEXT, **ends, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
  config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=6)
  widened(transformers.CLIPModel(config)).save_pretrained(root / "clip")
  sizes = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
  transformers.CLIPImageProcessor(**sizes).save_pretrained(root / "clip")
  coloured(root / "data", {"train": 12, "val": 5})
  return root


def overrides(folder, *more):
  return (
    f"model.path={folder / 'clip'}",
    f"data.name=folder:{folder / 'data'}",
    "method.name=full",
    "optim.learning_rate=1e-2",
    "train.batch_size=12",
    "train.save_every=0",
    "train.tensorboard=False",
    "train.final_splits=('validation',)",
    *more,
  )


def test_untrained_classes_are_those_of_transformers_and_training_finds_more(folder, tmp_path, capsys):
  names = sorted(one.name for one in (folder / "data" / "val").iterdir())
  files = [(label, path) for label, name in enumerate(names) for path in sorted((folder / "data/val" / name).iterdir())]
  pictures = [Image.open(path).convert("RGB") for _, path in files]
  reference = transformers.CLIPModel.from_pretrained(folder / "clip").eval()
  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "clip")
  said = tokenizer([f"a {name} picture" for name in names], padding=True, return_tensors="pt")
  pixels = transformers.CLIPImageProcessor.from_pretrained(folder / "clip")(pictures, return_tensors="np")
  with torch.no_grad():
    logits = reference(pixel_values=torch.tensor(pixels["pixel_values"]), **said).logits_per_image
  labels = torch.tensor([label for label, _ in files])

  given = overrides(folder, "task.name=zero_shot_image_classification", "task.prompt='a {label} picture'",
                    "train.steps=30", "train.eval_first=True")  # fmt: skip
  summary = loop.train(configs.load("", given), tmp_path / "run")
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  before = next(line for line in lines if line.get("split") == "validation")
  assert before["step"] == 0
  assert before["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
  found = summary["metrics"]["validation"]
  assert found["loss"] < 0.6 * before["loss"] and found["accuracy"] > before["accuracy"] + 0.2
  assert (tmp_path / "run" / "examples-validation.png").is_file()

  assert cli.main(["predict", f"--workdir={tmp_path / 'run'}", f"--file={files[0][1]}"]) == 0
  assert json.loads(capsys.readouterr().out)["label"] in names


def test_pairs_are_learned_and_scored_among_all_of_the_split(folder, tmp_path):
  table = "file_name,text\n" + "".join(
    f"{path.relative_to(folder / 'data' / 'train')},a {path.parent.name} dog\n"
    for path in sorted((folder / "data" / "train").rglob("*.png"))
  )
  (folder / "pairs.csv").write_text(table)
  given = overrides(folder, "task.name=image_text_contrastive", f"data.name=csv:{folder / 'pairs.csv'}",
                    f"data.image_root={folder / 'data' / 'train'}", "data.text_column=text",
                    "data.image_column=file_name", "train.steps=40", "train.final_splits=('train',)")  # fmt: skip
  summary = loop.train(configs.load("", given), tmp_path)
  metrics = summary["metrics"]["train"]
  assert metrics.keys() == {"loss", "text_recall_at_1", "image_recall_at_1"}
  assert metrics["text_recall_at_1"] > 0.9  # three colours, three texts
  again = finished.evaluate_run(tmp_path, ("train",))["metrics"]["train"]
  assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
  rows = np.load(tmp_path / "predictions-train.npz")
  assert rows["text_recall_at_1"].mean() == pytest.approx(metrics["text_recall_at_1"])


def test_a_new_picture_without_a_text_of_its_own_has_no_cosine():
  vectors = np.eye(2, 3, dtype=np.float32)
  found = {"index": np.arange(2), "image": vectors, "text": vectors[::-1]}
  said = ImageTextContrastive().answers(found, [{"label": 0}, {"text": "a dog"}])
  assert said == [{"embedding": [1, 0, 0]}, {"embedding": [0, 1, 0], "cosine": 0.0}]


@pytest.mark.parametrize(
  ("given", "said"),
  [
    (("task.name=image_text_contrastive",), "input.caption=''.*have no texts; set it, such as 'a photo of a {label}'"),
    (("task.name=zero_shot_image_classification", "task.prompt='a dog'"), "task.prompt='a dog'.*{label} in it"),
    (("task.name=image_text_contrastive", "input.caption=x", "input.mixup=0.2"), "input.mixup: no such field"),
    (("task.name=image_text_contrastive", "data.name=packaged:banking77"), "reads pictures and texts"),
  ],
)
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, capsys, given, said):
  flags = [f"--config.{one}" for one in overrides(folder, *given)]
  assert cli.main(["train", f"--workdir={tmp_path}", *flags]) == 2
  assert re.search(said, capsys.readouterr().err.strip().splitlines()[-1])


@pytest.mark.parametrize("task", ["zero_shot_image_classification", "image_text_contrastive"])
def test_texts_of_more_tokens_than_the_model_has_are_said_before_the_first_update(folder, tmp_path, capsys, task):
  shutil.copytree(folder / "clip", tmp_path / "clip")
  path = tmp_path / "clip" / "config.json"
  stated = json.loads(path.read_text())
  stated["text_config"]["vocab_size"] -= 1
  path.write_text(json.dumps(stated))
  more = (f"task.name={task}", f"model.path={tmp_path / 'clip'}", "model.init=random")
  more = (*more, "input.caption='a {label}'") if task == "image_text_contrastive" else more
  flags = [f"--config.{one}" for one in overrides(folder, *more)]
  assert cli.main(["train", f"--workdir={tmp_path / 'run'}", *flags]) == 2
  assert "ids but the model embeds" in capsys.readouterr().err.strip().splitlines()[-1]
