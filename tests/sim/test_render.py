"""Pictures and videos without a display. With REQUIRE_VIEWER=1, as in CI, a machine without OpenGL fails instead of skipping."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sim
from dpg_robot.errors import UnknownNameError
from sim import render
from sim.render import FrameRenderer, RenderError
from sim.video import lay_out, write_video


@pytest.fixture(scope="module", autouse=True)
def opengl():
    try:
        backend = render._load_backend()
    except RenderError as error:
        if os.environ.get("REQUIRE_VIEWER"):
            raise
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "_load_backend", lambda: backend)  # the trial of a backend takes a second
        yield


@pytest.fixture
def environment():
    environment = sim.make("cartpole-swingup", num_envs=2)
    environment.reset()
    return environment


def test_a_frame_shows_the_present_state_of_the_environment_that_was_asked_for(environment):
    environment.set_state(np.array([[-1.0, np.pi], [1.0, 0.0]]), np.zeros((2, 2)))
    with FrameRenderer(environment, 64, 48) as renderer:
        left, right = renderer.frame(0).astype(float), renderer.frame(1).astype(float)
        environment.set_state(np.array([[1.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2)))
        moved = renderer.frame(0).astype(float)
    assert left.shape == (48, 64, 3)
    robot = np.abs(left - right).max(axis=2) > 20  # where the two pictures differ, there is a cart or a pole
    orange = left[..., 0] - left[..., 2]  # the robot against the blue of the rest
    assert (orange[:, :32] * robot[:, :32]).sum() > (orange[:, 32:] * robot[:, 32:]).sum()
    np.testing.assert_allclose(moved, right, atol=2)


def test_up_is_up_in_a_frame(environment):
    environment.set_state(np.zeros((2, 2)), np.zeros((2, 2)))
    with FrameRenderer(environment, 64, 48) as renderer:
        upright = renderer.frame(0).astype(float)
        environment.set_state(np.array([[0.0, np.pi]] * 2), np.zeros((2, 2)))
        hanging = renderer.frame(0).astype(float)
    orange = (upright - hanging)[..., 0] - (upright - hanging)[..., 2]
    assert orange[:20].sum() > 0 > orange[28:].sum()


def test_each_environment_is_drawn_with_a_model_of_its_own(environment):
    size = environment.physics.parameter("geom_size")
    pole = environment.physics.model.geom("pole_1").id
    size[1, pole, 0] *= 4.0
    environment.set_state(np.zeros((2, 2)), np.zeros((2, 2)))
    with FrameRenderer(environment, 64, 48) as renderer:
        thin, thick = renderer.frame(0), renderer.frame(1)
    assert (np.abs(thin.astype(int) - thick).max(axis=2) > 40).sum() > 20


def test_drawing_leaves_the_simulation_as_it_was(environment):
    before = environment.state_dict()
    with FrameRenderer(environment, 32, 24) as renderer:
        renderer.frame(1)
    for name, value in environment.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_cameras_are_chosen_by_name_and_a_wrong_name_gets_a_suggestion(environment):
    with FrameRenderer(environment, 32, 24, "fixed") as fixed, FrameRenderer(environment, 32, 24, "free") as free:
        assert not np.array_equal(fixed.frame(0), free.frame(0))
    with pytest.raises(UnknownNameError, match="Did you mean 'fixed'"):
        FrameRenderer(environment, 32, 24, "fixd")


def test_without_opengl_the_error_says_what_to_install(tmp_path):
    script = (
        "import sim; from sim.render import FrameRenderer; e = sim.make('cartpole-swingup'); e.reset()\n"
        "try: FrameRenderer(e)\nexcept RuntimeError as error: print(error)"
    )
    setting = {"PYOPENGL_PLATFORM": "none", "MUJOCO_GL": "disable", "PYTHONPATH": str(Path(sim.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | setting, cwd=tmp_path, capture_output=True, text=True
    )
    assert "libegl1" in result.stdout, result.stderr
    assert "libosmesa6" in result.stdout


def make_frames(count, width=32, height=24):
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[:, index * width // count :, 0] = 255
    return list(frames)


def test_a_gif_has_the_frames_and_the_rate_that_were_asked_for(tmp_path):
    assert write_video(tmp_path / "a.gif", make_frames(8), fps=25) == 8
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (8, (32, 24), 40)
        gif.seek(4)
        picture = np.asarray(gif.convert("RGB")).astype(int)
    np.testing.assert_allclose(picture, make_frames(8)[4], atol=8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_an_mp4_plays_back_as_it_was_written(tmp_path):
    import imageio_ffmpeg

    write_video(tmp_path / "a.mp4", make_frames(10, 64, 48), fps=20)
    frames = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    about = next(frames)
    pictures = [np.frombuffer(frame, np.uint8).reshape(48, 64, 3) for frame in frames]
    assert (about["size"], about["fps"], len(pictures)) == ((64, 48), 20.0, 10)
    assert np.abs(pictures[5].astype(int) - make_frames(10, 64, 48)[5]).mean() < 10


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [("a.avi", make_frames(2), ".mp4 or .gif"), ("a.mp4", make_frames(2, 33), "even"), ("a.gif", [], "no picture")],
)
def test_a_video_that_cannot_be_made_is_refused_and_leaves_no_file(tmp_path, name, frames, message):
    with pytest.raises(RenderError, match=message):
        write_video(tmp_path / name, frames, fps=10)
    assert not list(tmp_path.iterdir())


def test_a_failure_on_the_way_leaves_the_old_video_alone(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"old")

    def broken():
        yield from make_frames(3)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_video(tmp_path / "a.mp4", broken(), fps=10)
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_pictures_are_laid_out_row_by_row():
    pictures = [np.full((2, 4, 3), value, dtype=np.uint8) for value in (1, 2, 3)]
    grid = lay_out(pictures)
    assert grid.shape == (4, 8, 3)
    assert grid[::2, ::4, 0].tolist() == [[1, 2], [3, 0]]
