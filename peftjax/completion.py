"""`peftjax completion`: what a shell needs to complete verbs, flags and the names of fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from peftjax.errors import UserError, nearest

_BASH = """\
_peftjax() {
  local word="${COMP_WORDS[COMP_CWORD]}" verb="${COMP_WORDS[1]}" joined
  joined="${COMP_LINE:0:COMP_POINT}"; joined="${joined##* }"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "%(verbs)s" -- "$word"))
    return
  fi
  local flags
  case "$verb" in
%(cases)s
  esac
  COMPREPLY=($(compgen -W "$flags" -- "$joined"))
  [ ${#COMPREPLY[@]} -eq 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}
complete -o nospace -o default -F _peftjax peftjax
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


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
  made = _BASH % {"verbs": " ".join(verbs), "cases": "\n".join(cases)}
  return (_ZSH if shell == "zsh" else "") + made
