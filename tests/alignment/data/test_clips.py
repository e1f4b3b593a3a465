"""Clips as strangers make them: only films are read, nothing else is opened, and no more than there is memory for."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data import clips
from alignment.data.clips import CLIPS, read_frames, survey
from alignment.data.media import find_clip
from alignment.errors import DataError
from evals.medium import Medium
from tests.support.clips import CODECS, written

LOSSY = 40  # of 255: a flat red after compression, and after the 8 bits of a GIF's palette


@pytest.mark.parametrize("ending", CODECS)
def test_every_kind_is_read(tmp_path: Path, ending: str) -> None:
    found = find_clip(tmp_path, written(tmp_path / f"a{ending}", [(16, 12)] * 9, fps=5).name)
    assert (found.frames, found.size) == (9, (16, 12))
    assert found.fps == pytest.approx(5, rel=1e-3)  # containers keep times in thousandths of a second
    reds = [np.asarray(frame)[..., 0].mean() for frame in found.open()]
    assert reds == pytest.approx([10 * k for k in range(9)], abs=LOSSY)
    assert set(CODECS) == set(CLIPS)


def test_chosen_frames_are_those_of_the_whole(tmp_path: Path) -> None:
    content = written(tmp_path / "a.mp4", [(16, 12)] * 9).read_bytes()
    whole, some = read_frames("a.mp4", content), read_frames("a.mp4", content, {0, 4, 7})
    assert all(np.array_equal(whole[k], frame) for k, frame in zip((0, 4, 7), some, strict=True))


# ---- what only looks like a clip -------------------------------------------------------------------------------------


def ffconcat(folder: Path, port: int) -> bytes:
    return b"ffconcat version 1.0\nfile secret.mp4\nduration 1\n"


def session(folder: Path, port: int) -> bytes:
    lines = ("v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0", f"m=video {port} RTP/AVP 96")
    return "\r\n".join((*lines, "a=rtpmap:96 H264/90000", "")).encode()


def playlist(folder: Path, port: int) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n"
    return f"{head}#EXTINF:1.0,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n".encode()


def local_playlist(folder: Path, port: int) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n{folder / 'secret.mp4'}\n#EXT-X-ENDLIST\n".encode()


def dash(folder: Path, port: int) -> bytes:
    represented = (
        f"<Representation id='1' bandwidth='1'><BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation>"
    )
    return (
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' profiles="
        f"'urn:mpeg:dash:profile:isoff-on-demand:2011'><Period><AdaptationSet mimeType='video/mp4'>{represented}"
        "</AdaptationSet></Period></MPD>"
    ).encode()


def imf(folder: Path, port: int) -> bytes:
    return b"<?xml version='1.0'?><CompositionPlaylist xmlns='http://www.smpte-ra.org/schemas/2067-3/2016'/>"


def redirect(folder: Path, port: int) -> bytes:
    return f"[Reference]\nRef1=http://127.0.0.1:{port}/a.mp4\n".encode()


def subtitles(folder: Path, port: int) -> bytes:
    return b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"


def stream_of_packets(folder: Path, port: int) -> bytes:
    return (b"\x47" + bytes(187)) * 20


def sound(folder: Path, port: int) -> bytes:
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    return (folder / "sound.wav").read_bytes()


HOSTILE: tuple[Callable[[Path, int], bytes], ...] = (
    ffconcat, session, playlist, local_playlist, dash, imf, redirect, subtitles, stream_of_packets, sound,
)  # fmt: skip


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
def test_scripts_and_other_formats_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: Callable[[Path, int], bytes], ending: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "secret.mp4", [(16, 12)] * 3)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.setblocking(False)
        (tmp_path / f"a{ending}").write_bytes(hostile(tmp_path, server.getsockname()[1]))
        for read in (lambda: find_clip(tmp_path, f"a{ending}"), Medium.file(tmp_path / f"a{ending}").pixels):
            with pytest.raises(
                DataError, match=rf"a\{ending} is not a video: it begins with .*; expected the content of"
            ):
                read()
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()


def test_a_film_may_open_nothing_beside_itself(tmp_path: Path) -> None:
    """A MOV may say that its samples are in another file; what it has there is not read."""
    whole = written(tmp_path / "a.mov", [(16, 12)] * 3).read_bytes()
    here = b"url " + (1).to_bytes(4, "big")  # flag 1: in this very file
    assert here in whole
    (tmp_path / "b.mov").write_bytes(whole.replace(here, b"url " + bytes(4)))
    with contextlib.suppress(DataError):
        assert find_clip(tmp_path, "b.mov").frames == 3


def test_a_film_without_pictures_says_so(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        heard.sample_rate = 8000
        container.mux(stream.encode(heard))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        find_clip(tmp_path, "a.mp4")


@functools.cache
def film(ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return written(Path(folder) / f"a{ending}", [(32, 24)] * 6).read_bytes()


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(CODECS)))
def test_damage_is_one_message(seed: int, ending: str) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(film(ending))
    for place in rng.integers(0, len(content), rng.integers(1, 30)):
        content[place] = rng.integers(0, 256)
    try:
        found = survey("a", bytes(content))
        assert len(read_frames("a", bytes(content))) == found.frames
    except DataError as error:  # damage may also go unseen
        assert str(error).startswith("a ")  # noqa: PT017


# ---- how much is read ------------------------------------------------------------------------------------------------


def test_too_many_frames_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "FRAMES_AT_MOST", 5)
    written(tmp_path / "a.mp4", [(16, 12)] * 6)
    for read in (lambda: find_clip(tmp_path, "a.mp4"), Medium.file(tmp_path / "a.mp4").pixels):
        with pytest.raises(DataError, match=r"a\.mp4 has more than 5 frames") as caught:
            read()
        assert "damaged" not in str(caught.value)
    written(tmp_path / "b.mp4", [(16, 12)] * 5)
    assert find_clip(tmp_path, "b.mp4").frames == 5


def test_frames_that_would_fill_the_memory_together_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "KEPT_AT_MOST", 5 * 16 * 12)
    written(tmp_path / "a.mp4", [(16, 12)] * 6)
    with pytest.raises(DataError, match=r"a\.mp4 has 6 frames or more of 16 x 12, and 960 pixels are read of a clip"):
        find_clip(tmp_path, "a.mp4")
    assert len(Medium.file(tmp_path / "a.mp4").pixels(5)) == 5  # a few of them are not too many
    with pytest.raises(DataError, match="are read of a clip"):
        Medium.file(tmp_path / "a.mp4").pixels(6)


def test_frames_that_are_too_large_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "PIXELS_AT_MOST", 16 * 12 - 1)
    written(tmp_path / "a.mp4", [(16, 12)] * 2)
    with pytest.raises(DataError, match=r"a\.mp4 has frames of 16 x 12 pixels, more than 191; scale it"):
        find_clip(tmp_path, "a.mp4")


def test_a_clip_that_changes_its_size_says_where(tmp_path: Path) -> None:
    parts = [av.open(str(written(tmp_path / f"{side}.avi", [(side, 16)] * 2))) for side in (16, 32)]
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream_from_template(parts[0].streams.video[0])
        for number, packet in enumerate(packet for part in parts for packet in part.demux() if packet.size):
            packet.stream, packet.pts, packet.dts = stream, number, number
            container.mux(packet)
    with pytest.raises(DataError, match=r"a\.avi changes its size: frame 2 is 32 x 16, those before are 16 x 16"):
        find_clip(tmp_path, "a.avi")


MEMORY = """
import resource, sys
from pathlib import Path
from alignment.data.media import find_clip
from alignment.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    find_clip(Path(sys.argv[1]), "a.mp4")
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
PEAK = 150_000  # kB; a decoder of 1080p holds some twenty frames of 3 MB. All that is kept at most would be 375,000


def test_a_small_file_of_many_pixels_takes_little_memory(tmp_path: Path) -> None:
    black = written(tmp_path / "one.avi", [(1920, 1080)])
    with av.open(str(black)) as one, av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream_from_template(one.streams.video[0])
        (packet,) = (packet for packet in one.demux() if packet.size)
        for number in range(80):
            packet.stream, packet.pts, packet.dts = stream, number, number
            container.mux(packet)
    assert (tmp_path / "a.mp4").stat().st_size < 4_000_000
    ran = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    said, peak = ran.stdout.splitlines()
    assert "a.mp4 has 61 frames or more of 1920 x 1080" in said
    assert int(peak) < PEAK
