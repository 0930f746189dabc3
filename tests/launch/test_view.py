"""The live view in a real browser. With REQUIRE_VIEWER=1, as in CI, a machine without Chromium fails instead of skipping."""

import dataclasses
import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sim
from dpg_robot.contract import Feature
from dpg_robot.errors import ContractError
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.policy import Policy
from dpg_robot.observation import HistoryStack

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "view.py"
ENVIRONMENT = os.environ | {"MUJOCO_GL": "disable", "PYTHONPATH": str(ROOT)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE_LIMIT_S = 60
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def run_view(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False, **options)


@pytest.fixture(scope="module")
def view_script():
    """Return ``launch/view.py`` as a module."""
    spec = importlib.util.spec_from_file_location("view", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def view():
    """Yield a running view of two environments, its address, and stop it by Ctrl-C."""
    command = [sys.executable, str(SCRIPT), "--environments", "2", "--randomization", "default", "--port", "0", "--no-browser"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.stderr.read())
        yield re.search(r"http://\S+", line).group()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.fixture(scope="module")
def page(view, tmp_path_factory):
    """Yield the page in a headless browser."""
    if CHROMIUM is None:
        message = "no Chromium here; install it (Debian's package chromium)"
        (pytest.fail if os.environ.get("REQUIRE_VIEWER") else pytest.skip)(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=CHROMIUM_OPTIONS, viewport={"width": 640, "height": 400}
        )
        browser.set_default_timeout(1000 * PAGE_LIMIT_S)
        page = browser.pages[0]
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(view)
        page.locator(".uplot canvas").wait_for()
        yield page
        browser.close()
    assert not problems


def status(page):
    """Return whether the view is paused and the number of its steps, as the page says."""
    text = page.get_by_text(re.compile(r"step \d+, ")).inner_text()
    return "paused" in text, int(re.search(r"step (\d+)", text).group(1))


def wait_until(page, condition):
    """Wait until ``condition`` of (paused, steps) holds; returns the steps."""
    limit = time.monotonic() + PAGE_LIMIT_S
    while time.monotonic() < limit:
        paused, steps = status(page)
        if condition(paused, steps):
            return steps
        page.wait_for_timeout(50)
    pytest.fail(f"the page still says paused={paused}, step {steps}")


def dynamics(page):
    """Return the table of the drawn dynamics."""
    return page.locator("table").filter(has_text="mass/pole_1")


def plot(page):
    """Return the pixels of the plot of the rewards."""
    return page.locator(".uplot canvas").evaluate("canvas => canvas.toDataURL()")


def test_the_page_shows_the_environments_and_their_dynamics(page):
    wait_until(page, lambda paused, steps: steps > 20)
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=1000 * PAGE_LIMIT_S))).convert("RGB")).astype(int)
    scene = picture[:, :300]
    wood = (scene[..., 0] - scene[..., 2] > 40) & (scene[..., 0] < 250)  # the robot's colour; floor and page are grey and white
    assert wood.sum() > 50
    assert scene.std() > 5
    assert "drawn dynamics" in dynamics(page).inner_text()


def test_the_rewards_move_until_paused_and_a_single_step_is_one_step(page):
    start, first = wait_until(page, lambda paused, steps: not paused), plot(page)
    wait_until(page, lambda paused, steps: steps > start + 50)
    assert plot(page) != first

    page.get_by_role("button", name="Pause").click()
    stopped = wait_until(page, lambda paused, steps: paused)
    page.wait_for_timeout(500)  # several periods of the panel, in which nothing may move
    still = plot(page)
    page.wait_for_timeout(500)
    assert (status(page), plot(page)) == ((True, stopped), still)

    page.get_by_role("button", name="Step").click()
    assert wait_until(page, lambda paused, steps: steps != stopped) == stopped + 1

    page.get_by_role("button", name="Continue").click()
    wait_until(page, lambda paused, steps: not paused and steps > stopped + 20)


def test_reset_begins_new_episodes_with_newly_drawn_dynamics(page):
    page.get_by_role("button", name="Step").click()
    wait_until(page, lambda paused, steps: paused)
    drawn = dynamics(page).inner_text()
    page.get_by_role("button", name="Reset").click()
    limit = time.monotonic() + PAGE_LIMIT_S
    while dynamics(page).inner_text() == drawn:
        assert time.monotonic() < limit, "the drawn dynamics stay the same"
        page.wait_for_timeout(50)
    assert "return so far 0.0" in page.get_by_text("return so far").inner_text()


def test_a_busy_port_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run_view("--port", port, "--no-browser")
    assert result.returncode == 1
    assert f"127.0.0.1:{port}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("task", "message"),
    [("cartpole-swingupp", "Did you mean 'cartpole-swingup'?"), ("fish-swim", "fish-swim runs dm_control's own")],
)
def test_a_task_that_cannot_be_shown_is_refused(task, message):
    result = run_view("--task", task, "--no-browser")
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("module", "arguments"), [("viser", ()), ("imageio_ffmpeg", ("--record", "a.mp4"))])
def test_a_missing_library_names_the_extra(tmp_path, module, arguments):
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('no {module} here', name='{module}')")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(SCRIPT), "--no-browser", "--seconds", "0.1", *arguments]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 1
    assert "dpg-robot[view]" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a policy, its contract and its file."""
    path = tmp_path_factory.mktemp("policy") / "policy.onnx"
    contract = sim.make("cartpole-swingup", action_repeat=2).contract(history=2)
    torch.manual_seed(0)
    policy = Policy(contract.observation_size, contract.num_actions, (16,))
    torch.nn.init.normal_(policy.network[-1].weight, std=1.0)
    export_policy(policy, contract, path)
    return policy, contract, path


def test_a_policy_file_acts_as_the_policy_in_training_does(exported, view_script):
    policy, contract, path = exported
    environment = sim.make("cartpole-swingup", num_envs=3, action_repeat=2, seed=5)
    actor, history = view_script.PolicyActor(path, 3), HistoryStack(contract, 3)
    features = environment.reset()
    for index in range(30):
        with torch.no_grad():
            expected = policy.mean_action(torch.from_numpy(history.observe(features))).numpy()
        action = actor.act(features)
        np.testing.assert_allclose(action, expected, atol=1e-4)
        history.push(features, expected)
        if index == 15:
            actor.restart(np.array([1]))
            history.clear(np.array([1]))
        features = environment.step(expected).obs


def test_measurements_that_features_do_not_determine_are_refused(view_script):
    contract = sim.make("cartpole-swingup").contract()
    cosine_only = dataclasses.replace(contract, features=(*contract.features[:2], Feature("cos", "pole_velocity")))
    with pytest.raises(ContractError, match="pole_angle"):
        view_script.measure(cosine_only, np.zeros((1, 3)))


def test_a_policy_is_recorded_with_the_task_and_rate_it_was_made_for(tmp_path, exported):
    arguments = ("--policy", exported[2], "--environments", 3, "--seconds", 0.4, "--width", 96, "--height", 64)
    result = run_view(*arguments, "--record", tmp_path / "a.gif")
    if "no OpenGL works here" in result.stderr and not os.environ.get("REQUIRE_VIEWER"):
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size) == (10, (96, 64))
        pictures = [np.asarray(gif.convert("RGB")).astype(int) for index in (0, 9) if not gif.seek(index)]
    for rows, columns in ((slice(0, 32), slice(0, 48)), (slice(0, 32), slice(48, 96)), (slice(32, 64), slice(0, 48))):
        assert np.abs(pictures[1] - pictures[0])[rows, columns].max() > 30, "each of the three robots moves"


def test_a_policy_for_another_task_is_refused(exported):
    result = run_view("--policy", exported[2], "--task", "pendulum-swingup", "--no-browser")
    assert result.returncode == 1
    assert "policy.onnx does not fit task pendulum-swingup" in result.stderr
