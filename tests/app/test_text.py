import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from alexnet_func.app.progress import Show
from alexnet_func.app.text import shortened, shown
from tests.app.names import HOSTILE, LINES


def printed(show_it, **console):
    file = io.StringIO()
    show_it(Show(Console(file=file, **console)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2J\x7f\0\t", r"\x1b[2J\x7f\x00\x09"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("caf\xe9", "café"),
        ("\x85\xa0", r"\u0085\u00a0"),
        ("\u202egnp\u2066", r"\u202egnp\u2066"),
        ("\U000e0067", r"\U000e0067"),
        ("\ud800", r"\ud800"),
        (r"\frac{1}{2} \nabla $x^2$ [b] :smile: 😀 שלום  %", r"\frac{1}{2} \nabla $x^2$ [b] :smile: 😀 שלום  %"),
    ],
)
def test_what_cannot_be_printed_is_escaped_and_all_else_stays(text, expected):
    assert shown(text) == expected


def read_back(line):
    """An oracle of its own: what the escapes of a line without other backslashes stand for."""

    def character(match):
        code = int(match[2], 16)
        return chr(code + 0xDC00 if match[1] == "x" and code >= 0x80 else code)

    return re.sub(r"\\(x|u|U)([0-9a-f]{8}|(?<=u)[0-9a-f]{4}|(?<=x)[0-9a-f]{2})", character, line.replace(r"\n", "\n"))


@given(st.one_of(LINES, st.text(st.characters(), max_size=20)))
def test_a_text_is_shown_on_one_printable_line_that_tells_it_from_others(text):
    line = shown(text)
    assert line.isprintable()
    assert shown(line) == line
    if text.isprintable():
        assert line == text
    plain = text.replace("\\", "/")
    assert read_back(shown(plain)) == plain


@given(st.text(max_size=60), st.integers(3, 40))
def test_a_shortened_text_keeps_its_ends(text, longest):
    short = shortened(text, longest)
    if len(text) <= longest:
        assert short == text
    else:
        assert len(short) == longest
        start, end = short.split("…") if "…" not in text else (short[: longest - 1 - (longest - 1) // 3], "")
        assert text.startswith(start)
        assert text.endswith(end)


@given(st.one_of(LINES, st.sampled_from(HOSTILE)))
def test_a_line_on_the_console_is_the_text_and_nothing_else(text):
    for console in ({"width": 20}, {"force_terminal": True, "width": 20}):
        assert printed(lambda show: show.line(text), **console) == shown(text) + "\n"


def test_a_table_has_its_names_literally_and_whole():
    rows = [(f"{i} {name}", str(i)) for i, name in enumerate(HOSTILE)]
    table = printed(lambda show: show.table("a [b]", ("class [b]", "n"), rows), width=40)
    assert all(f"{i} {shown(name)}" in table for i, name in enumerate(HOSTILE))
    assert table.lstrip().startswith("a [b]")
    assert "class [b]" in table
    assert "\x1b" not in table
    assert len(table.splitlines()) == len(rows) + 5  # title, heading and three rules


def test_a_table_in_a_terminal_goes_on_in_the_next_line_for_a_long_name():
    name = "".join(chr(ord("a") + i % 26) for i in range(255))
    lines = printed(lambda show: show.table(None, ("class", "n"), [(name, "3")]), width=40, force_terminal=True)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", lines).splitlines()
    assert max(map(len, lines)) <= 40
    assert "".join(line.split("│")[1].strip() for line in lines if line.startswith("│")) == name


def test_names_that_differ_in_what_looks_like_markup_differ_in_the_table():
    lines = printed(lambda show: show.table(None, ("class",), [("0 mug [a]",), ("0 mug [b]",)])).splitlines()
    assert "mug [a]" in lines[3]
    assert "mug [b]" in lines[4]
