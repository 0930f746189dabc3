"""Writing videos, and laying pictures out in a grid."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.files import write_atomically
from sim.render import RenderError

_GIF_FILTER = "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none:diff_mode=rectangle"  # one palette for the whole video
_ENCODERS: dict[str, dict[str, Any]] = {
    ".mp4": {"codec": "libx264", "pix_fmt_out": "yuv420p", "quality": 8},
    ".gif": {"codec": "gif", "pix_fmt_out": "pal8", "quality": None, "output_params": ["-vf", _GIF_FILTER]},
}
FORMATS = tuple(_ENCODERS)


def write_video(path: str | Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> int:
    """Encode ``frames`` into ``path``, which appears whole or not at all.

    Args:
        path: ends in ``.mp4`` (H.264) or ``.gif``.
        frames: pictures (height, width, 3), all of one size; H.264 needs even numbers of pixels.
        fps: pictures per second.

    Returns:
        The number of pictures.

    Raises:
        RenderError: another ending, an odd size, no pictures, or the encoder failed or is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENCODERS:
        raise RenderError(f"cannot write {path}: a video's name ends in {' or '.join(FORMATS)}")
    with tempfile.TemporaryDirectory() as folder:
        encoded = Path(folder) / f"video{path.suffix.lower()}"
        count = _encode(encoded, frames, fps)
        write_atomically(path, encoded.read_bytes())
    return count


def grid_shape(count: int) -> tuple[int, int]:
    """Return the rows and columns of a grid for ``count`` pictures, nearly square."""
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def lay_out(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return one picture with all ``pictures`` (height, width, 3) in a grid, row by row; places left over are black."""
    rows, columns = grid_shape(len(pictures))
    height, width, _ = pictures[0].shape
    grid = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        grid[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return grid


def _encode(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> int:
    ffmpeg = _import_ffmpeg()
    settings = _ENCODERS[path.suffix]
    writer = None
    count = 0
    try:
        for frame in frames:
            height, width, _ = frame.shape
            if path.suffix == ".mp4" and (width % 2 or height % 2):
                raise RenderError(f"an mp4 video needs an even width and height, got {width} x {height}")
            if writer is None:
                writer = ffmpeg.write_frames(
                    str(path), (width, height), fps=fps, macro_block_size=1, ffmpeg_log_level="error", **settings
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(frame))
            count += 1
    except OSError as error:  # with the encoder's own words
        raise RenderError(f"the video encoder failed: {error}") from error
    finally:
        if writer is not None:
            writer.close()
    if not count or not path.is_file() or not path.stat().st_size:
        raise RenderError("no video was written" + ("" if count else ": there was no picture"))
    return count


def _import_ffmpeg() -> ModuleType:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise RenderError(f"writing videos needs the extra 'view': pip install 'dpg-robot[view]' ({error})") from error
    return imageio_ffmpeg  # type: ignore[no-any-return]
