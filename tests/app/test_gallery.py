import pytest
import torch

from alexnet_func.app import gallery

IMAGES = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)


def drawn(figure):
    """What the figure's images show, and its words."""
    figure.canvas.draw()
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    words = [text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts) if text.get_text()]
    return [torch.as_tensor(array).permute(2, 0, 1) for array in shown], words


def test_pictures_stand_with_their_captions():
    shown, words = drawn(gallery.pictures(IMAGES, list("abcde"), columns=3))
    assert torch.equal(torch.stack(shown), IMAGES)
    assert words == list("abcde")


@pytest.mark.errors
def test_a_missing_caption_is_an_error():
    with pytest.raises(ValueError, match="5 images need as many captions, got 4"):
        gallery.pictures(IMAGES, list("abcd"))


def test_predictions_name_the_likeliest_classes_in_order_and_mark_the_right_one():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0, -2.0]]).expand(2, 6)
    figure = gallery.predictions(IMAGES[:2], torch.tensor([3, 5]), logits, list("abcdef"), columns=2)
    shown, words = drawn(figure)
    assert torch.equal(torch.stack(shown), IMAGES[:2])
    assert words == ["d", "f", *"bdcae", *"bdcae"]
    marked = [[bar.get_facecolor() for bar in axes.patches] for axes in figure.axes if axes.patches]
    assert len(set(marked[0])) == 2
    assert len(set(marked[1])) == 1


def test_neighbours_follow_their_query():
    nearest = torch.tensor([[4, 2], [0, 1]])
    shown, _ = drawn(gallery.neighbours(IMAGES[:2], IMAGES, nearest))
    assert torch.equal(torch.stack(shown), IMAGES[torch.tensor([0, 4, 2, 1, 0, 1])])
