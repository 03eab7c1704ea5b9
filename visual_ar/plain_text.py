"""Text of foreign files and users as a terminal may show it; knows no terminal and no file.

What a terminal obeys or hides is written out: control characters, changes of the direction of
writing, line and paragraph separators, invisible marks and halves of surrogate pairs. The two
joiners stay, which emoji and several scripts need.
"""

import json
import shlex
import unicodedata
from typing import Any

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"


def is_plain(text: str, encoding: str = "utf-8") -> bool:
    """Whether a terminal of this encoding shows all characters of a text and obeys none."""
    return all(_is_shown(character, encoding) for character in text)


def plain(text: str, keep: str = "") -> str:
    r"""A text for people, in which what a terminal would obey is written out, such as `\x1b`.

    Args:
        text: any.
        keep: characters that stay, such as a newline in a text of several lines of ours.
    """
    return "".join(one if one in keep or _is_shown(one) else _escaped(one) for one in text)


def plain_json(document: Any, encoding: str = "utf-8") -> str:
    r"""A document as JSON that is equal when parsed; what a terminal would obey is `\u` and digits.

    Args:
        document: anything JSON can hold.
        encoding: of where it is printed; what this cannot write is `\u` and digits too.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return "".join(
        one if one == "\n" or _is_shown(one, encoding) else json.dumps(one)[1:-1] for one in text
    )


def shell_word(word: str, encoding: str = "utf-8") -> str:
    """A word for a POSIX shell that means exactly this and that a terminal shows whole.

    Args:
        word: as a program would receive it; a lone surrogate is a byte, as `os.fsencode` has it.
        encoding: of the terminal; what this cannot show is written in octal.

    Raises:
        ValueError: no program can receive it, since it holds NUL or is no text.
    """
    if "\0" in word:
        raise ValueError(f"a word of a command must not hold NUL, got {word!r}")
    if is_plain(word, encoding):
        return shlex.quote(word)
    return f"$'{''.join(_octal(one, encoding, word) for one in word)}'"


def _is_shown(character: str, encoding: str = "utf-8") -> bool:
    if character.isascii():
        return character.isprintable()
    if unicodedata.category(character) in _OBEYED and character not in _JOINERS:
        return False
    return encoding.lower().startswith("utf") or _encodes(character, encoding)


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _octal(character: str, encoding: str, word: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if _is_shown(character, encoding):
        return character
    try:  # three digits a byte, since hexadecimal ones would swallow digits that follow
        return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise ValueError(f"a word of a command must be text in Unicode, got {word!r}") from None
