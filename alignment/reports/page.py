"""What pages have in common: they open from the disk, fetch nothing, run no script, and look alike."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup
from PIL import Image

from alignment.data.frame_rate import EXPORTED
from alignment.reports.pictures import MOMENTS, encode, encode_loop, frames, moments
from reward_models.base import Media

PICTURE_WIDTH = 384
"""Pictures wider than this are made smaller before they are embedded, so that a page of 1024-pixel ones stays light."""


@dataclass(frozen=True)
class PageMedium:
    """A picture or clip in a page.

    Attributes:
        uri: Its bytes, as a data URI.
        moving: Whether it is a film, to be started and stopped.
        small: Whether it is enlarged on screen, and should keep its pixels sharp.
        scores: Metric and score, as text.
        sheet: Of a clip: a few of its moments side by side, as a data URI, for paper and for still pages.
    """

    uri: str
    moving: bool
    small: bool = False
    scores: tuple[tuple[str, str], ...] = ()
    sheet: str = ""


@functools.cache
def template(package: str, name: str) -> jinja2.Template:
    """Return a page's template, a file of a package; what it is told is escaped, and `style` is the pages' own."""
    surroundings = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_own),
    )
    surroundings.filters["svg"] = Markup  # our own drawing: matplotlib has escaped what users wrote in it
    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return surroundings.from_string(text, {"style": Markup(_own("page_style.css"))})


def _own(name: str) -> str:
    """Return a file that all pages share."""
    return resources.files("alignment.reports").joinpath(name).read_text(encoding="utf-8")


def shown(media: Media, scores: tuple[tuple[str, str], ...] = ()) -> PageMedium:
    """Return a sample as a page shows it: a picture, or a clip that plays by itself.

    Args:
        media: One row.
        scores: Metric and score, as text.
    """
    clip = frames(media.pixels[0])
    width = clip[0].width
    if width > PICTURE_WIDTH:
        size = (PICTURE_WIDTH, round(clip[0].height * PICTURE_WIDTH / width))
        clip = [frame.resize(size, Image.Resampling.LANCZOS) for frame in clip]
    if len(clip) > 1:
        loop = encode_loop(clip, media.fps or EXPORTED)
        still = frames(moments(media).pixels[0])[0]
        still.thumbnail((MOMENTS * PICTURE_WIDTH, PICTURE_WIDTH))
        sheet = data_uri("image/png", encode(still))
        return PageMedium(data_uri("image/webp", loop), False, width < 200, scores, sheet)
    if width > 128:
        return PageMedium(data_uri("image/jpeg", encode(clip[0], "JPEG")), False, width < 200, scores)
    return PageMedium(data_uri("image/png", encode(clip[0])), False, True, scores)


def data_uri(kind: str, content: bytes) -> str:
    """Return content of a MIME type as an address that holds all of it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
