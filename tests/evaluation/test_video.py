import numpy as np
import pytest

from forec_jax.data import DataError
from forec_jax.evaluation.video import frames, is_video
from forec_jax.experiment.use import photos

av = pytest.importorskip("av", reason="pip install 'forec-jax[video]'")

GREYS = (16, 96, 224)


@pytest.fixture
def clip(tmp_path):
    """Three frames, each of one grey."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for grey in GREYS:
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), grey, np.uint8), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    return path


def test_frames_come_in_their_order(clip):
    assert is_video(clip)
    found = list(frames(clip))
    assert [frame.shape for frame in found] == [(32, 48, 3)] * len(GREYS)
    np.testing.assert_allclose([frame.mean() for frame in found], GREYS, atol=4)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip\.mp4 cannot be read as a video"):
        list(frames(tmp_path / "clip.mp4"))


def test_a_playlist_is_not_followed(clip):
    """It would name other files, and addresses, whatever its own name."""
    playlist = clip.with_name("list.mp4")
    playlist.write_text(f"ffconcat version 1.0\nfile {clip.name}\n")
    with av.open(str(playlist)) as followed:  # as it would be, were it not for its kind
        assert sum(1 for _ in followed.decode(video=0)) == len(GREYS)
    with pytest.raises(DataError, match=r"list\.mp4 cannot be read"):
        list(frames(playlist))


def test_frames_are_photos_at_the_size_that_the_run_sees(clip):
    found = list(photos(clip, 24))
    assert [photo.example.id for photo in found] == ["clip/000001.png", "clip/000002.png", "clip/000003.png"]
    assert {photo.example.image.shape for photo in found} == {(16, 24, 3)}
    assert {photo.size for photo in found} == {(32, 48)}
