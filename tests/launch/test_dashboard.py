"""The dashboard in a real browser. With REQUIRE_VIEWER=1, as in CI, a machine without Chromium fails instead of skipping."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpg_robot.data.transition import LoopState
from dpg_robot.release import SigningKey, read_release

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "dashboard.py"
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
INJECTED = "<img src=x onerror=\"document.title='broken into'\">"
INJECTED_SCRIPT = "</script><script>document.title='broken into'</script>"


def load_site():
    spec = importlib.util.spec_from_file_location("dashboard_site", ROOT / "tests" / "host" / "dashboard_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = load_site()


def run_dashboard(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False)


class Host:
    """The folders of a host, its keys, and a robot that goes on writing its log."""

    def __init__(self, folder):
        self.folder, self.models = folder, folder / "models"
        self.signing = SigningKey.generate()
        self.signing.save(folder / "host.key")
        self.store = SITE.make_model_store(self.models, self.signing, (True, False, True), reason=INJECTED)
        self.store.publish(3, INJECTED_SCRIPT)
        SITE.write_learning(folder / "learning", 10, error=INJECTED)
        SITE.write_learning(folder / "learning", 11, error=INJECTED)
        robot = INJECTED.replace("/", "")  # the name of a folder; no robot that ships through a server could have it
        SITE.write_run(folder / "logs", robot, "run", SITE.make_ticks(0, 20)).close()
        broken = SITE.make_ticks(0, 20)
        broken["state"][15:], broken["safety"][14] = LoopState.FAULT, 512
        SITE.write_run(folder / "logs", "arm-2", "run", broken).close()
        self.writer = SITE.write_run(folder / "logs", "arm-1", "run", SITE.make_ticks(0, 100))
        self.ticks = 100
        made = run_dashboard("token", folder / "operator.key")
        self.key = re.search(r"operator's key: (\S+)", made.stdout).group(1)

    def go_on(self, count=5, measurement=None):
        """Let the robot write some more of its log."""
        records = SITE.make_ticks(self.ticks, count)
        if measurement is not None:
            records["measurement"][:] = measurement
        SITE.append(self.writer, records)
        self.ticks += count

    @property
    def arguments(self):
        places = ("--logs", self.folder / "logs", "--store", self.models, "--learning", self.folder / "learning")
        keys = ("--operator-key", self.folder / "operator.key", "--sign", self.folder / "host.key")
        return (*places, *keys, "--view", "cartpole-swingup", "--view-port", "0", "--port", "0", "--interval", "0.1")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Yield a host with a running dashboard; ``url`` is where."""
    host = Host(tmp_path_factory.mktemp("host"))
    command = [sys.executable, str(SCRIPT), "serve", *map(str, host.arguments)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.stderr.read())
        host.url = re.search(r"http://[^\s;]+", line).group()
        yield host
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    host.writer.close()
    assert (process.returncode, rest) == (0, "")
    said = [re.sub(r"rolled back to version 1: .*|tried a wrong key", "known", line) for line in errors.splitlines()]
    assert set(said) <= {"dashboard: 127.0.0.1 known", "dashboard: 127.0.0.1 has known"}, errors


@pytest.fixture(scope="module")
def page(host, tmp_path_factory):
    """Yield the page in a headless browser that reaches nothing but this machine."""
    if CHROMIUM is None:
        message = "no Chromium here; install it (Debian's package chromium)"
        (pytest.fail if os.environ.get("REQUIRE_VIEWER") else pytest.skip)(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=CHROMIUM_OPTIONS, viewport={"width": 1100, "height": 700}
        )
        browser.set_default_timeout(1000 * PAGE_LIMIT_S)
        page = browser.pages[0]
        problems, elsewhere = [], []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("response", lambda response: problems.append(response.url) if response.status not in (200, 401) else None)

        def stay_here(route):
            if re.match(r"http://127\.0\.0\.1:\d+/", route.request.url):
                route.continue_()
            else:
                elsewhere.append(route.request.url)
                route.abort()

        browser.route(re.compile("^http"), stay_here)
        page.goto(host.url)
        page.locator("#robot-table table").wait_for()
        yield page
        browser.close()
    refused = [problem for problem in problems if "401" in problem]
    assert (problems, elsewhere) == (refused, [])


def row(page, table, text):
    """Return the row of a table that holds a text."""
    return page.locator(f"#{table} tbody tr").filter(has_text=text)


def wait_until(page, condition, what):
    limit = time.monotonic() + PAGE_LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < limit, f"waited in vain for {what}"
        page.wait_for_timeout(50)
    return value


def test_the_page_shows_robots_learning_verdicts_and_releases(page, host):
    assert page.locator("#connection").inner_text() == "live"
    wait_until(
        page, lambda: (host.go_on(), "data arrives" in row(page, "robot-table", "arm-1").inner_text())[1], "the robot's data"
    )
    assert "50 of 50 Hz" in row(page, "robot-table", "arm-1").inner_text()
    assert "device_fault" in row(page, "faults", "arm-2").inner_text()
    assert re.search(r"updates\s+11", page.locator("#learning").inner_text())
    wait_until(page, lambda: page.locator("#learning-charts svg polyline").count() == 2, "the learning curves")
    assert "rejected" in row(page, "versions", "FAILED").inner_text()
    assert row(page, "releases", "3").first.inner_text().startswith("3\t")
    assert page.locator("#releases td span.good").first.inner_text() == "right"
    current = page.locator("#versions tbody tr").filter(has=page.get_by_text("current", exact=True))
    assert current.inner_text().startswith("3\t")


def test_what_is_written_on_the_host_moves_on_the_page_by_itself(page, host):
    host.go_on(50)
    newest = str(host.ticks - 1)
    SITE.write_learning(host.folder / "learning", 12345, error=INJECTED)
    wait_until(page, lambda: row(page, "robot-table", "arm-1").locator("td").nth(5).inner_text() == newest, "the log")
    wait_until(page, lambda: "12345" in page.locator("#learning").inner_text(), "the status")
    wait_until(page, lambda: page.locator("#learning-charts svg[aria-label*='3 points']").count() == 2, "the curves")


def test_a_robot_that_falls_silent_is_seen_to_be_old(page, host):
    silent = row(page, "robot-table", "arm-2")
    wait_until(page, lambda: "nothing new arrives" in silent.inner_text(), "the link's silence")
    wait_until(page, lambda: silent.locator("time.stale").count() == 1, "the mark of its age")
    assert silent.locator("span.stale").count() > 1, "its figures are marked, too"


def test_scripts_in_names_reasons_and_errors_are_shown_as_text(page, host):
    for place in ("robot-table", "faults", "versions", "learning"):
        assert "<img src=x onerror=" in page.locator(f"#{place}").inner_text()
    assert INJECTED_SCRIPT in page.locator("#releases").inner_text()
    page.locator("#reasons-2 summary").click()
    assert page.locator("#reasons-2 li").inner_text() == f"FAILED: {INJECTED} 1"
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "dpg-robot dashboard"


def test_everything_can_be_reached_by_the_keyboard(page, host):
    page.locator("h1").click()
    page.keyboard.press("Tab")
    reached = []
    for _ in range(40):
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
        page.keyboard.press("Tab")
    assert {"robot-table", "roll-back-1", "view-toggle", "view-link"} <= set(reached)
    unnamed = "() => [...document.querySelectorAll('button, a, input, iframe, svg, section')].filter((each) => " \
        "!(each.textContent.trim() || each.ariaLabel || each.title || each.labels?.length)).length"  # fmt: skip
    assert page.evaluate(unnamed) == 0


def ask_to_roll_back(page, key):
    page.locator("#rollback-reason").fill("it trembled")
    page.locator("#rollback-key").fill(key)
    page.keyboard.press("Enter")
    page.locator("#rollback-answer.bad, #rollback-answer.good").wait_for()
    return page.locator("#rollback-answer").inner_text()


def test_rolling_back_needs_the_key_and_then_shows_the_new_release(page, host):
    page.get_by_role("button", name="Roll back to version 1").click()
    assert "refused: that is not the operator's key; nothing was changed" in ask_to_roll_back(page, "wrong")
    assert host.store.releases() == [1, 2, 3]

    assert ask_to_roll_back(page, host.key) == "version 1 is the current one"
    page.keyboard.press("Escape")
    release = read_release(host.models, [host.signing.public])
    assert (release.number, release.reason) == (4, "version 1: it trembled")
    newest = page.locator("#releases tbody tr").first
    wait_until(page, lambda: newest.inner_text().startswith("4\t"), "the new release")
    assert "it trembled" in newest.inner_text()
    current = page.locator("#versions tbody tr").filter(has=page.get_by_text("current", exact=True))
    assert current.inner_text().startswith("1\t")
    assert page.locator("#rollback-key").input_value() == "", "the key does not stay on the page"
    assert host.key not in page.content()


def test_the_view_shows_the_robot_as_it_was_measured(page, host):
    page.locator("#view-toggle").click()
    view = page.frame_locator("#view-place iframe")
    robot = view.locator("input:visible").first
    robot.click()
    view.get_by_role("option", name="arm-1", exact=True).click()

    def fields():
        return view.locator("input:visible").evaluate_all("inputs => inputs.map((each) => each.value)")

    wait_until(page, lambda: fields()[:2] == ["arm-1", "run"], "the robot's name and run")

    def wood():
        picture = np.asarray(Image.open(io.BytesIO(page.locator("iframe").screenshot())).convert("RGB")).astype(int)
        brown = (picture[..., 0] - picture[..., 2] > 40) & (picture[..., 0] < 250)  # the robot's colour
        return brown if brown.sum() > 50 else None

    wait_until(page, lambda: wood() is not None, "the robot")
    still = wood()
    host.go_on(200, measurement=(1.0, 2.0, 0.0, 0.0))
    wait_until(page, lambda: (now := wood()) is not None and (now != still).sum() > 100, "the robot to move")
    page.locator("#view-toggle").click()
    assert page.locator("iframe").count() == 0


def test_figures_are_printed_once_by_the_status_command(host):
    result = run_dashboard("status", "--logs", host.folder / "logs", "--store", host.models)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert [robot["name"] for robot in figures["robots"]] == sorted(["arm-1", "arm-2", INJECTED.replace("/", "")])
    assert figures["models"]["passed"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve",), "what shall be shown?"),
        (("serve", "--logs", "x", "--host", "0.0.0.0"), "give --tls-cert and --tls-key"),
        (("serve", "--logs", "x", "--tls-cert", "x"), "belong together"),
        (("serve", "--logs", "x", "--operator-key", "x"), "needs --store"),
        (("serve", "--store", "x", "--sign", "{folder}/host.key"), "give --operator-key, too"),
        (("serve", "--store", "{folder}", "--operator-key", "{folder}/operator.key"), "is no model store"),
        (("serve", "--logs", "x", "--view", "cartpole-swingupp"), "Did you mean 'cartpole-swingup'?"),
        (("serve", "--logs", "x", "--view", "pendulum-swingup"), "do not tell its pose"),
        (("token", "{folder}/operator.key"), "exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_refused_with_a_reason(host, arguments, message):
    result = run_dashboard(*(argument.format(folder=host.folder) for argument in arguments))
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_library_of_the_view_names_the_extra(tmp_path):
    (tmp_path / "viser.py").write_text("raise ModuleNotFoundError('no viser here', name='viser')")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(SCRIPT), "serve", "--logs", "x", "--view", "cartpole-swingup"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 1
    assert "dpg-robot[view]" in result.stderr
