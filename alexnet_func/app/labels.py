"""A user's words in matplotlib's pictures, where `$` is no mathematics and a letter that the font lacks no warning."""

from typing import Any

from matplotlib.font_manager import FontProperties, findfont, get_font

from alexnet_func.app.text import shortened, shown

LITERAL: dict[str, Any] = {"parse_math": False}  # for whatever writes a label


def label(name: str, longest: int = 24) -> str:
    """The name on one line of at most so many characters; those the font has no picture of as `text.shown` has them.

    The font is that of matplotlib's settings, or each of those it may fall back on.
    """
    families = FontProperties().get_family()
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]

    def printable(character: str) -> bool:
        return character.isprintable() and any(font.get_char_index(ord(character)) for font in fonts)

    return shortened(shown(name, printable), longest)
