"""The film of the neurons: its frames are the recorded clouds, and nothing else."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter
from PIL import Image

from lnsim.cli.main import main
from lnsim.experiments import label_noise
from lnsim.figures import animation
from lnsim.run.record import Status
from lnsim.simulation.trajectory import Trajectory

SMALL = {"samples": 30, "dim": 4, "width": 20, "steps": 400, "record_every": 20, "test_samples": 10}


def run(replicas=1, **driver):
    return label_noise.run(label_noise.Config(**SMALL), replicas=replicas, **driver)


class Watching(AbstractMovieWriter):
    """Notes what every frame shows."""

    def setup(self, fig, outfile, dpi=None):
        super().setup(fig, outfile, dpi)
        self.frames = []

    def grab_frame(self, **options):
        (axes,) = self.fig.axes
        limits = (*axes.get_xlim(), *axes.get_ylim())
        self.frames.append((axes.get_title(), axes.lines[0].get_xydata().T, limits))

    def finish(self):
        Path(self.outfile).write_bytes(b"film")


@pytest.mark.small
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_frame_is_a_recorded_cloud_in_the_same_limits(replicas, tmp_path, monkeypatch):
    writer = Watching(fps=1)
    monkeypatch.setattr(animation, "_writer", lambda ending: writer)
    trajectory = run(replicas)
    count = trajectory["cloud_step"].size
    assert animation.write(trajectory, tmp_path / "film.gif") == count
    assert (tmp_path / "film.gif").read_bytes() == b"film"
    norm, alignment = (trajectory[f"cloud_{k}"] for k in ("norm", "alignment"))
    if replicas > 1:
        norm, alignment = norm[0], alignment[0]
    for k, (title, points, limits) in enumerate(writer.frames[:count]):
        assert title == f"$t$ = {trajectory['cloud_step'][k]:,}"
        np.testing.assert_array_equal(points, [norm[k], alignment[k]])
        assert limits == writer.frames[0][2]
        assert limits[1] > points[0].max() and limits[3] > points[1].max()
    assert {title for title, *_ in writer.frames[count:]} == {f"$t$ = {SMALL['steps']:,}"}


def test_a_gif_has_a_frame_for_each_cloud_and_is_the_same_every_time(tmp_path, capsys):
    folder = tmp_path / "run"
    run().save(folder)
    before = sorted(path.name for path in folder.iterdir())
    for name in ("a.gif", "b.GIF"):
        assert main(["plot", str(folder), "--animate", str(tmp_path / name)]) == 0
    count = Trajectory.load(folder)["cloud_step"].size
    assert f"a.gif, {count} recorded clouds" in capsys.readouterr().out
    with Image.open(tmp_path / "a.gif") as film:
        # Equal frames, here the last ones, are one that lasts longer.
        assert film.format == "GIF" and film.n_frames == count and film.info["loop"] == 0
        film.seek(count - 1)
        assert film.info["duration"] == animation.LAST * 1000 // animation.FRAMES_PER_SECOND
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.GIF").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == before
    for arguments, says in (
        (["film.png"], "must end in .gif or .mp4, got '.png'"),
        (["film.gif", "--column", "norm_mean"], "give only one of them"),
        ([str(tmp_path / "none" / "film.gif")], "No such file or directory"),
    ):
        assert main(["plot", str(folder), "--animate", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert main(["plot", str(folder), str(folder), "--animate", "film.gif"]) == 2
    assert "--animate takes one run folder, got 2" in capsys.readouterr().err


@pytest.mark.small
def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no clouds of neurons"):
        animation.write(run(clouds=False), tmp_path / "film.gif")
    monkeypatch.setattr(FFMpegWriter, "isAvailable", lambda: False)
    bare = Trajectory({"step": np.array([0])}, {}, Status("OK", 0))
    with pytest.raises(ValueError, match="needs ffmpeg, which is not found"):
        animation.write(bare, tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


def test_an_mp4_is_written_by_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "animation.ffmpeg_path", get_ffmpeg_exe())
    animation.write(run(), tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
