"""`peftjax completion`: what a shell needs to complete verbs, flags and the names of fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from peftjax.errors import UserError, nearest

_BASH = """\
_peftjax() {
  local word="${COMP_WORDS[COMP_CWORD]}" verb="${COMP_WORDS[1]}" joined IFS=$'\\n'
  joined="${COMP_LINE:0:COMP_POINT}"; joined="${joined##* }"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(IFS=' ' compgen -W "%(verbs)s" -- "$word"))
    return
  fi
  case "$joined" in *=*)  # a value; bash divides it at = and :
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "${joined##*[=:]}"))
    return
  esac
  local flags
  case "$verb" in
%(cases)s
  esac
  COMPREPLY=($(IFS=' ' compgen -W "$flags" -- "$joined"))
  if [ ${#COMPREPLY[@]} -eq 0 ]; then
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}
complete -o nospace -o default -F _peftjax peftjax
"""
_ZSH = """\
#compdef peftjax
_peftjax() {
  local flags
  if (( CURRENT == 2 )); then
    compadd -- %(verbs)s
    return
  fi
  if [[ $PREFIX == *=* ]]; then  # a value
    compset -P '*[=:]'
    _files
    return
  fi
  case $words[2] in
%(cases)s
  esac
  compadd -S '' -- ${=flags} || _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _peftjax peftjax
"""


def script(shell: str, verbs: Mapping[str, Iterable[str]], fields: Sequence[str]) -> str:
  """The script that a shell reads: ``source <(peftjax completion bash)``.

  Args:
    verbs: verb -> its flags and words.
    fields: names of the config's fields.

  Raises:
    UserError: no such shell.
  """
  if shell not in ("bash", "zsh"):
    raise UserError(f"peftjax completion {shell}: expected bash or zsh; {nearest(shell, ['bash', 'zsh'])}")
  config = " ".join(f"--config.{name}=" for name in fields)
  cases = [f'    {verb}) flags="{" ".join(flags)}{" " + config if "--config=" in flags else ""}" ;;'
           for verb, flags in ((verb, list(flags)) for verb, flags in verbs.items())]  # fmt: skip
  return {"bash": _BASH, "zsh": _ZSH}[shell] % {"verbs": " ".join(verbs), "cases": "\n".join(cases)}
