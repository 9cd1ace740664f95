"""Molecules as SMILES strings with properties computed from them; README.md beside this file describes them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from peftjax.data.inputs.tokenizer_training import smiles_tokens
from peftjax.data.packages import fetch
from peftjax.data.sources.splits import hashed_split
from peftjax.errors import UserError
from peftjax.extras import require

Row = dict[str, Any]

MOST_TOKENS = 46  # so that 48 hold a string and the special tokens around it
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class Builder(tfds.core.GeneratorBasedBuilder):
  """A string, and of its molecule logP, the polar surface area and drug-likeness."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(),
          "logp": np.float32,  # Wildman and Crippen 1999
          "tpsa": np.float32,  # square ångström; Ertl et al. 2000
          "qed": np.float32,  # 0 to 1; Bickerton et al. 2012
        }
      )
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, Row]]]:
    folder = fetch("MoleculeACE") / "MoleculeACE" / "Data" / "benchmark_data"
    strings = [one for one in read_strings(folder) if len(smiles_tokens(one)) <= MOST_TOKENS]
    splits = {name: [one for one in strings if hashed_split(one, SHARES) == name] for name in SHARES}
    return {name: self._generate_examples(rows) for name, rows in splits.items()}

  def _generate_examples(self, strings: Iterable[str]) -> Iterator[tuple[str, Row]]:
    for string in strings:
      yield string, {"text": string, **properties(string)}


def read_strings(folder: Path) -> list[str]:
  """The strings of all files of the folder, each once, sorted."""
  found: set[str] = set()
  for path in sorted(folder.glob("*.csv")):
    with path.open(encoding="utf-8", newline="") as file:
      found.update(row["smiles"] for row in csv.DictReader(file))
  return sorted(found)


def properties(string: str) -> Row:
  """The properties of a SMILES string's molecule.

  Raises:
    UserError: RDKit is not installed, or reads no molecule in the string.
  """
  require("packaged:molecules", "rdkit", "molecules")
  from rdkit import Chem
  from rdkit.Chem import QED, rdMolDescriptors

  molecule = Chem.MolFromSmiles(string)
  if molecule is None:
    raise UserError(f"packaged:molecules: RDKit reads no molecule in {string!r:.80}")
  logp, _ = rdMolDescriptors.CalcCrippenDescriptors(molecule)
  return {"logp": logp, "tpsa": rdMolDescriptors.CalcTPSA(molecule), "qed": QED.qed(molecule)}
