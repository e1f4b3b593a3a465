"""Clips as people see them: moments side by side, and films whose frames are the clip's."""

import io

import av
import numpy as np
import torch

from alignment.reports.pictures import MOMENTS, contact_sheet, encode_clip, frames, grid, moments
from reward_models.base import Media

ROUGH = 24  # levels by which H.264 at this quality may miss flat colours


def ramp(count, size=32):
    """A clip whose frame k is grey level k / count everywhere."""
    return Media(torch.arange(count).div(count).view(1, -1, 1, 1, 1).expand(2, -1, 3, size, size), fps=4.0)


def test_moments_are_the_first_the_last_and_some_between():
    wide = moments(ramp(9))
    assert wide.pixels.shape == (2, 1, 3, 32, MOMENTS * 32)
    levels = wide.pixels[0, 0, 0, 0, ::32] * 9
    assert levels.round().tolist() == [0, 2, 4, 6, 8]


def test_a_short_clip_has_as_many_moments_as_frames():
    assert moments(ramp(3)).pixels.shape[-1] == 3 * 32


def test_a_contact_sheet_shows_every_row():
    sheet = np.asarray(contact_sheet(ramp(9), ["a", "b"], ["", ""]))
    for level in (2, 4, 6, 8):
        assert (sheet == round(255 * level / 9)).all(-1).sum() >= 2 * 32 * 32


def test_a_film_holds_the_frames_of_its_clip_at_their_pace():
    clip = frames(ramp(9).pixels[0])
    with av.open(io.BytesIO(encode_clip(clip, fps=4.0))) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert float(film.streams.video[0].average_rate) == 4.0
    assert len(shown) == 9
    for frame, picture in zip(shown, clip, strict=True):
        assert np.abs(frame.astype(int) - np.asarray(picture)).max() <= ROUGH


def test_frames_of_odd_size_can_be_filmed():
    with av.open(io.BytesIO(encode_clip(frames(ramp(3, size=33).pixels[0]), fps=8.0))) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (32, 32)


def test_a_grid_of_clips_has_a_page_a_frame():
    assert len(grid(ramp(5), ["a", "b"], ["", ""])) == 5
