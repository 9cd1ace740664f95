"""The study: full fine-tuning or PEFT, and which? What other rooms may use of it."""

from peftjax.compare import formatting
from peftjax.compare.analysis import Question, Summary
from peftjax.compare.records import Record, read_results
from peftjax.compare.study import conclude_again, conclusions, run_study

__all__ = [
  "Question",
  "Record",
  "Summary",
  "conclude_again",
  "conclusions",
  "formatting",
  "read_results",
  "run_study",
]
