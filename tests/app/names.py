"""Names that people, systems and attackers give to files and folders."""

import os
import random

import numpy as np
from hypothesis import strategies as st
from PIL import Image

HOSTILE = (
    "cat [1]",
    "[/b]",
    "[red]mug[/red]",
    "[link=https:x]go",
    ":smile:",
    "$x^2$",
    "$",
    r"$\foo{$",
    r"\frac{",
    r"back\slash \n",
    "_hidden",
    "100%",
    "{0} %s",
    "two  blanks ",
    " leading",
    "a\nb",
    "a\r\tb",
    "\x1b[31mred\x1b[0m",
    "bell\a\x7f",
    "\x85\xa0\xad",
    "\u202egnp.exe",
    "zero\u200bwidth\ufeff",
    "שלום",
    "مرحبا",
    "ไทย",
    "猫",
    "😀👩\u200d🔬",
    "e\u0301",
    "=1+1",
    "quo\"te',;",
    "-x",
    "W" * 255,
    "\U0001f600" * 63,
    os.fsdecode(b"caf\xe9 [b]"),
    os.fsdecode(b"\xff\xfe\x80"),
)

FILE_NAMES = tuple(name for name in HOSTILE if "/" not in name)

# No slash and no zero byte; bytes that are no UTF-8 as the system's own functions decode them.
_LETTERS = st.one_of(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
    st.sampled_from("[]$\\_%:{}^#&~*?\"'`\n\r\t\x1b\x7f\u202e\u2066\u200d 😀אبあ"),
    st.integers(0xDC80, 0xDCFF).map(chr),
)
LINES = st.text(_LETTERS, max_size=60)


def fuzzed(count, seed=0):
    """Different names that a file system takes: up to 255 bytes of any kind, control characters and mathematics."""
    generator = random.Random(seed)
    blocks = [(0x01, 0x2E), (0x30, 0x7F), (0x80, 0x250), (0x590, 0x700), (0x2000, 0x2100), (0x4E00, 0x9FFF)]
    blocks += [(0x1F300, 0x1F700), (0xDC80, 0xDCFF), (0x01, 0x2E), (0x30, 0x7F), (0xE0000, 0xE0080)]
    names = {}
    while len(names) < count:
        most = generator.choice([3, 12, 250])
        kinds = generator.sample(blocks, generator.randint(1, 3))
        letters = [chr(generator.randint(*generator.choice(kinds))) for _ in range(generator.randint(1, most))]
        words = generator.choice(["", "[b]", "[red]", ":smile:", "$x^2$", r"\frac{", "_", "%s"])
        name = os.fsdecode(os.fsencode(words + "".join(letters))[:250])
        if not name.startswith("."):
            names[name] = None
    return list(names)


def image(path, low, seed=0):
    """A file of noise, 32x32, brighter with `low`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(low, low + 50, (32, 32, 3)).astype(np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
    return path
