"""CoNLL text: one token and its tag a line, a blank line between sentences."""

from __future__ import annotations

Sentence = tuple[list[str], list[str]]  # tokens, tags


def read_conll(text: str) -> list[Sentence]:
  """The sentences of a file whose lines are ``token<TAB>tag``; lines of white space alone divide sentences.

  >>> read_conll("Ada\\tB-person\\nsmiled\\tO\\n\\t\\nYes\\tO\\n")
  [(['Ada', 'smiled'], ['B-person', 'O']), (['Yes'], ['O'])]
  """
  sentences: list[Sentence] = [([], [])]
  for line in text.split("\n"):
    if line.strip():
      token, tag = line.split("\t")
      sentences[-1][0].append(token)
      sentences[-1][1].append(tag)
    elif sentences[-1][0]:
      sentences.append(([], []))
  return [sentence for sentence in sentences if sentence[0]]


def bio_names(types: tuple[str, ...]) -> list[str]:
  """O first, then B- and I- of each type.

  >>> bio_names(("person", "place"))
  ['O', 'B-person', 'I-person', 'B-place', 'I-place']
  """
  return ["O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]
