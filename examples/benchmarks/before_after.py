"""Draw held-out pictures before and after, from the same noise: `before_after.py RUN OUTPUT.png [METRIC [EACH]]`.

A clip is drawn as a few of its moments side by side. METRIC, a share such as "direction", colours the frames; the first
EACH pictures of every caption are shown, or all that the run kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from alignment.reports import run_folder
from alignment.reports.pictures import frames, moments
from alignment.reports.run_folder import Evaluated

SIDE, GAP, TEXT = 72, 6, 22
GOOD, BAD = "#1f9d72", "#c93d3d"


def column(sheet: Image.Image, shown: Sequence[Evaluated], row: int, at: tuple[int, int], metric: str) -> None:
    """Paste one picture before (above) and after (below), framed by whether it shows its caption."""
    for step, result in enumerate(shown):
        right = next(scores for name, scores in result.scores.items() if name.endswith(metric))[row] > 0.5
        picture = still(result, row)
        x, y = at[0], at[1] + step * (SIDE + GAP)
        sheet.paste(picture, (x, y))
        frame = (x - 2, y - 2, x + picture.width + 1, y + SIDE + 1)
        ImageDraw.Draw(sheet).rectangle(frame, outline=GOOD if right else BAD, width=2)


def still(result: Evaluated, row: int) -> Image.Image:
    """Return a picture, or the moments of a clip, at the height they are shown in."""
    media = result.media[row : row + 1]
    picture = frames((moments(media) if media.pixels.shape[1] > 1 else media).pixels[0])[0]
    return picture.resize((round(picture.width * SIDE / picture.height), SIDE), Image.Resampling.NEAREST)


def main(run: str, output: str, metric: str = "strict", each: str | None = None) -> None:
    """Write one block a caption: its first pictures side by side, above before and below after."""
    found = run_folder.read_evaluations(Path(run))
    before, after = found[run_folder.BASE][1], found[run_folder.FINAL][1]
    shown = range(len(before.media))
    captions = list(dict.fromkeys(before.prompts[row] for row in shown))
    most = int(each) if each else len(shown)
    rows = {caption: [row for row in shown if before.prompts[row] == caption][:most] for caption in captions}
    widest, width = max(map(len, rows.values())), still(before, 0).width + GAP
    block_width, block_height = widest * width + 3 * GAP, 2 * (SIDE + GAP) + TEXT + 2 * GAP
    across = 3 if len(captions) > 4 else 1
    down = -(-len(captions) // across)
    sheet = Image.new("RGB", (across * block_width + GAP, down * block_height + GAP), "white")
    font = ImageFont.load_default(size=14)
    for number, caption in enumerate(captions):
        x, y = GAP + number % across * block_width, GAP + number // across * block_height
        ImageDraw.Draw(sheet).text((x, y), caption, fill="#222222", font=font)
        for place, row in enumerate(rows[caption]):
            column(sheet, (before, after), row, (x + 2 + place * width, y + TEXT), metric)
    sheet.save(output, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
