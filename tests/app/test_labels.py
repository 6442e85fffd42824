import io
import os

import pytest
import torch

from alexnet_func.app import gallery, plots
from alexnet_func.app.labels import label
from alexnet_func.app.text import shortened, shown
from tests.app.names import HOSTILE, fuzzed
from tests.app.test_gallery import drawn

PLAIN = [name for name in HOSTILE if name.isprintable() and name.isascii() and len(name) <= 18]


def words_of(figure):
    """All words of a figure that was drawn: matplotlib's own findobj, not what our code set."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture
def saved(monkeypatch):
    """The figures that are saved from now on."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: [figures.append(self), save(self, *args, **kwargs)]
    )
    return figures


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 12))
def test_the_confusion_matrix_has_any_names_literally_and_without_a_warning(tmp_path, saved, start):
    names = HOSTILE[start : start + 12]
    plots.confusion(torch.eye(len(names), dtype=torch.int64), names, tmp_path / "confusion.png")
    for axis in (saved[0].axes[0].xaxis, saved[0].axes[0].yaxis):
        words = [tick.get_text() for tick in axis.get_ticklabels()]
        assert words == [label(name) for name in names]
        assert set(names) & set(PLAIN) <= set(words)


def test_the_picture_of_an_inspection_has_any_names_literally_and_without_a_warning(tmp_path, saved):
    captions = [(name, other, 2.5) for name, other in zip(HOSTILE, reversed(HOSTILE), strict=True)]
    images = torch.zeros(len(captions), 3, 8, 8, dtype=torch.uint8)
    plots.inspection(images, captions, torch.ones(9), {"features.0": 1.0}, tmp_path / "inspect.png")
    words = words_of(saved[0])
    assert all(f"{label(name, 18)}, seen as\n{label(other, 18)}, 2.5" in words for name, other, _ in captions)
    assert all(any(word.startswith(f"{name}, seen as\n") for word in words) for name in PLAIN)


def test_captions_of_any_text_are_drawn_without_a_warning():
    names = [name.replace("\n", " ") for name in fuzzed(48)]
    images = torch.zeros(len(names), 3, 2, 2, dtype=torch.uint8)
    figure = gallery.pictures(images, names, title="  ".join(names))
    figure.savefig(io.BytesIO())
    assert drawn(figure)[1] == [label(name) for name in names]


def test_predictions_have_any_names_literally(tmp_path):
    logits = torch.arange(len(HOSTILE), 0, -1).float()[None]
    figure = gallery.predictions(torch.zeros(1, 3, 2, 2).byte(), torch.tensor([5]), logits, HOSTILE)
    figure.savefig(io.BytesIO())
    assert drawn(figure)[1] == [HOSTILE[5], *HOSTILE[:5]]


def test_a_letter_that_the_font_lacks_is_escaped_as_one_that_cannot_be_printed():
    assert label("猫 a\nb") == r"\u732b a\nb"
    assert label("😀 שלום é") == "😀 שלום é"  # DejaVu has these
    assert label(os.fsdecode(b"\xe9")) == r"\xe9"


def test_a_long_name_keeps_its_ends():
    assert label("W" * 255 + "end") == "W" * 16 + "…" + "WWWWend"
    assert label("x" * 24) == "x" * 24
    assert shortened(shown("ab"), 24) == label("ab")


def test_a_font_to_fall_back_on_is_asked_too():
    import matplotlib as mpl

    with mpl.rc_context({"font.family": ["STIXGeneral", "DejaVu Sans"]}):
        assert label("😀") == "😀"
    with mpl.rc_context({"font.family": ["STIXGeneral"]}):
        assert label("😀") == r"\U0001f600"
