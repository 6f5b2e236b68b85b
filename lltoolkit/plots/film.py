"""Pictures one after the other as a film: GIF by Pillow, MP4 by imageio-ffmpeg."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np


def require_encoder(kind: str, instead: str) -> None:
    """Raise if a kind of film cannot be written here.

    Parameters
    ----------
    kind : str
        The suffix without its dot.
    instead : str
        What needs no encoder.

    Raises
    ------
    ImportError
        If an MP4 is asked for and imageio-ffmpeg is not there.
    """
    if kind == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise ImportError(f'an .mp4 takes imageio-ffmpeg: pip install "lltoolkit[video]". Or write {instead}.')


def write_film(file: Path, pictures: Iterable[np.ndarray], fps: int) -> None:
    """Write a film; the suffix says as what. A GIF is shown again and again.

    Parameters
    ----------
    file : Path
        ``.gif`` or ``.mp4``.
    pictures : iterable of ndarray
        Each of shape ``(height, width, 3)``, uint8, of even sizes for an MP4.
    fps : int
        Pictures in a second.
    """
    (_write_mp4 if file.suffix.lower() == ".mp4" else _write_gif)(file, pictures, fps)


def _write_gif(file: Path, pictures: Iterable[np.ndarray], fps: int) -> None:
    from PIL import Image

    rest = iter(pictures)
    # One palette for all, or what stands still would flicker.
    palette = Image.fromarray(next(rest)).quantize(255, dither=Image.Dither.NONE)
    frames = (Image.fromarray(each).quantize(palette=palette, dither=Image.Dither.NONE) for each in rest)
    palette.save(file, save_all=True, append_images=frames, duration=round(1000 / fps), loop=0)


def _write_mp4(file: Path, pictures: Iterable[np.ndarray], fps: int) -> None:
    from imageio_ffmpeg import write_frames

    rest = iter(pictures)
    first = next(rest)
    # H.264 in 4:2:0 is what every browser and slide show plays.
    film = write_frames(str(file), first.shape[1::-1], fps=fps, codec="libx264", macro_block_size=2, quality=8)
    film.send(None)
    try:
        film.send(np.ascontiguousarray(first))
        for each in rest:
            film.send(np.ascontiguousarray(each))
    finally:
        film.close()
