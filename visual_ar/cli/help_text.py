"""Helps that say what their authors wrote: rich would draw `:A:` as a red letter; knows no command.

Rich has no switch for it in the parser that typer calls, but reads no name across a tag.
"""

import re
from typing import Any

_NAME = re.compile(r":(?=\S*?:)")
_NOTHING = ":[none][/none]"  # an empty piece in the style "none"


def literal(text: str) -> str:
    """A help in rich's markup whose colons stay colons."""
    return _NAME.sub(_NOTHING, text)


def keep_colons(command: Any) -> None:
    """Makes the helps of a command, of its parameters and of the commands under it literal."""
    for told in (command, *command.params):
        for name in ("help", "short_help", "epilog"):
            text = getattr(told, name, None)
            if isinstance(text, str):
                setattr(told, name, literal(text))
    for under in getattr(command, "commands", {}).values():
        keep_colons(under)
