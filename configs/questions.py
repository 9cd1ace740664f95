"""MiniLM for extractive question answering on wnut17_questions by one method.

peftjax train --config=configs/questions.py:lora --workdir=runs/questions-lora

lora: 524 updates in about seven minutes of two busy cores, seed 0. F1 .455 on 150 questions of validation and .440 on
150 of test (exact match .453 and .440; loss 1.18 and 0.82); to answer nothing to every question scores .280 and .327.
Of the questions that have an answer F1 is .252 and .178: one pass is not the end.
"""

from encoder import get_config as encoder
from ml_collections import ConfigDict


def get_config(method: str = "lora") -> ConfigDict:
  config = encoder(method)
  config.data.name = "packaged:wnut17_questions"
  config.data.eval_examples = 150
  config.data.max_length = 64
  config.data.buckets = ()
  config.input.doc_stride = 16
  config.task.max_answer_length = 12
  config.train.batch_size = 16
  config.train.epochs = 1.0
  config.train.final_splits = ("validation", "test")
  return config
