"""`completion`: print a script that lets a shell complete the command lines of mlxk2."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import shtab

if TYPE_CHECKING:
    from mlxk2.commands.context import Context
    from mlxk2.spec import CompletionData

# Only characters that the hub allows: a folder name with other characters could run a command in the shell.
# In the output of `list`, an empty line separates the table from its total.
_AWK = "!NF { exit } NR > 1 && $1 ~ /^[A-Za-z0-9][A-Za-z0-9._\\/-]*$/ { print $1 }"
_POSIX_NAMES = f"""
# $1 is the typed word. Print the short names of the models in the cache, or full names if the word begins like one.
_mlxk2_names() {{
  mlxk2 list --all $([[ $1 == [Mm][Ll][Xx]-* ]] && echo --verbose) 2>/dev/null | awk '{_AWK}'
}}"""
_PREAMBLE = {
    "bash": _POSIX_NAMES
    + """
# prints the lines of stdin that begin with $1, in upper or lower case
_mlxk2_like() { word="$1" awk 'index(tolower($0), tolower(ENVIRON["word"])) == 1'; }
_mlxk2_cached() { _mlxk2_names "$1" | _mlxk2_like "$1"; }
_mlxk2_model() { { echo demo; _mlxk2_names "$1"; } | _mlxk2_like "$1"; }
""",
    "zsh": _POSIX_NAMES
    + """
_mlxk2_cached() { compadd -M 'm:{a-zA-Z}={A-Za-z}' "$@" -- ${(f)"$(_mlxk2_names "$PREFIX")"} }
_mlxk2_model() {
  if [[ $PREFIX == [./~]* ]]; then
    _files -/
  else
    compadd -M 'm:{a-zA-Z}={A-Za-z}' "$@" -- demo ${(f)"$(_mlxk2_names "$PREFIX")"}
  fi
}
""",
    "fish": f"""
function _mlxk2_cached
  set -l flags --all
  string match -qi 'mlx-*' -- (commandline -ct); and set -a flags --verbose
  mlxk2 list $flags 2>/dev/null | awk '{_AWK}'
end
function _mlxk2_model
  if string match -qr '^[./~]' -- (commandline -ct)
    __fish_complete_directories
  else
    echo demo
    _mlxk2_cached
  end
end
""",
}
_MODEL = {"bash": "_mlxk2_model", "zsh": "_mlxk2_model", "fish": "(_mlxk2_model)", "preamble": _PREAMBLE}
_CACHED = {"bash": "_mlxk2_cached", "zsh": "_mlxk2_cached", "fish": "(_mlxk2_cached)", "preamble": _PREAMBLE}
# bash completes folders by itself, with correct quotes.
_FOLDER = {"zsh": "_files -/", "fish": "(__fish_complete_directories)"}

_OF_ARGUMENT = {
    "model": _MODEL,
    "pattern": _CACHED,
    "adapter": _FOLDER,
    "target_dir": _FOLDER,
    "local_dir": _FOLDER,
}
_CACHE_ONLY = ("pull", "rm", "clone")

# The program has two names, and zsh users load the script by `source`, by `eval` or from a folder.
_ZSH_CHANGES = {
    "#compdef mlxk2\n": "#compdef mlxk2 mlxk-json\n",
    "$zsh_eval_context[-1] == eval ]]": "$zsh_eval_context[-1] == (eval|file) ]]",
    "compdef _shtab_mlxk2 -N mlxk2\n": "compdef _shtab_mlxk2 -N mlxk2 mlxk-json\n",
}
_ENDINGS = {
    "bash": "\ncomplete -o bashdefault -o dirnames -F _shtab_mlxk2 mlxk2 mlxk-json\n",
    "fish": "complete -c mlxk-json -w mlxk2\n",
}


class Options(NamedTuple):
    """The shell, and the parser of the enabled commands."""

    shell: Literal["bash", "zsh", "fish"]
    grammar: argparse.ArgumentParser


def run(options: Options, _context: Context) -> CompletionData:
    """Return the script of a shell for the enabled commands."""
    _mark(options.grammar, _OF_ARGUMENT)
    script: str = shtab.complete(options.grammar, options.shell)
    if options.shell == "zsh":
        for old, new in _ZSH_CHANGES.items():
            script = script.replace(old, new)
    return {"shell": options.shell, "script": script + _ENDINGS.get(options.shell, "")}


def _mark(parser: argparse.ArgumentParser, completers: Mapping[str, object]) -> None:
    """Set the completion of each argument of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                _mark(command, {**completers, "model": _CACHED} if name in _CACHE_ONLY else completers)
        elif action.dest in completers:
            action.complete = completers[action.dest]  # type: ignore[attr-defined]
