"""A video as a row of images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forec_jax.data import DataError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts")

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf"
"""The kinds of file that are opened, whatever a name says: a playlist would name other files, and addresses."""


def is_video(path: Path) -> bool:
    """Whether a file's name ends like a video's."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def frames(path: Path) -> Iterator[np.ndarray]:
    """The frames u8[H,W,3] of a video, upright, one after the other, in the order in which they are shown.

    Raises DataError, naming the file, where PyAV is not installed, or the file is no video or is damaged; frames before the
    damage have been given by then.
    """
    try:
        import av
    except ImportError as error:
        raise DataError(f"{path} is a video: pip install 'forec-jax[video]'") from error
    safe = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(str(path), options=safe) as video:
            if not video.streams.video:
                raise DataError(f"{path} holds no pictures")
            for frame in video.decode(video=0):
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read as a video ({error}); convert or replace it") from error
