#!/usr/bin/env python
"""Watch environments live in the browser, or record a video of them."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import signal
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dpg_robot.contract import Contract
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.errors import ConfigError, ContractError, DpgError
from dpg_robot.policy_file import read_policy_file

if TYPE_CHECKING:
    from sim.rollout import Rollout

DEFAULT_TASK = "cartpole-swingup"


class PolicyActor:
    """A policy file, one session for each environment.

    Args:
        path: the ``policy.onnx``.
        num_envs: number of environments N.
    """

    def __init__(self, path: Path, num_envs: int) -> None:
        PolicySession.load(path)  # replays the golden vectors, once
        content, metadata = read_policy_file(path)
        self.contract: Contract = metadata.contract
        self._sessions = [PolicySession(content, metadata, str(path)) for _ in range(num_envs)]

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the actions (N, A) that the policy takes on the observations (N, F)."""
        measurements = measure(self.contract, observation)
        actions = np.empty((len(self._sessions), self.contract.num_actions))
        for session, measurement, action in zip(self._sessions, measurements, actions, strict=True):
            session.step(measurement)
            action[:] = session.action
        return actions

    def restart(self, ids: NDArray[np.int64]) -> None:
        """Forget the histories of environments ``ids``."""
        for index in ids:
            self._sessions[index].reset()


class RandomActor:
    """Uniform random actions."""

    def __init__(self, num_envs: int, act_dim: int, seed: int) -> None:
        self._shape = num_envs, act_dim
        self._random = np.random.default_rng(seed)

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return actions (N, A)."""
        return self._random.uniform(-1.0, 1.0, self._shape)

    def restart(self, ids: NDArray[np.int64]) -> None:
        """There is nothing to forget."""


class ZeroActor(RandomActor):
    """Actions 0, the middle of the range of each actuator."""

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return actions (N, A)."""
        return np.zeros(self._shape)


def measure(contract: Contract, features: NDArray[Any]) -> NDArray[np.float64]:
    """Return measurements (N, M) whose features are ``features`` (N, F): the graph of a policy file starts from measurements.

    An angle that is given by its cosine and sine comes back within (-pi, pi].

    Raises:
        ContractError: a channel that its features do not determine.
    """
    columns = {(feature.kind, feature.channel): index for index, feature in enumerate(contract.features)}
    measurements = np.empty((len(features), contract.num_measurements))
    for index, name in enumerate(contract.measurement_names):
        if ("identity", name) in columns:
            measurements[:, index] = features[:, columns["identity", name]]
        elif ("sin", name) in columns and ("cos", name) in columns:
            measurements[:, index] = np.arctan2(features[:, columns["sin", name]], features[:, columns["cos", name]])
        else:
            raise ContractError(f"measurement {name!r} cannot be told from the policy's features; give it a feature 'identity'")
    return measurements


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="view.py", description=f"{__doc__} docs/viewing.md tells more.")
    parser.add_argument("--task", help=f"task (default: the policy's, else {DEFAULT_TASK})")
    parser.add_argument("--environments", type=int, default=1, metavar="N", help="number of environments (default: %(default)s)")
    actor = parser.add_mutually_exclusive_group()
    actor.add_argument("--policy", type=Path, metavar="FILE", help="act with this policy.onnx")
    actor.add_argument("--random", action="store_true", help="act at random (the default without --policy)")
    actor.add_argument("--zero", action="store_true", help="act with zeros")
    parser.add_argument("--randomization", default="none", metavar="NAME", help="preset or YAML file (default: %(default)s)")
    parser.add_argument("--disturbance", default="none", metavar="NAME", help="preset or YAML file (default: %(default)s)")
    parser.add_argument("--action-repeat", type=int, metavar="N", help="control steps per action (default: the policy's, else 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per second (default: %(default)s)")
    page = parser.add_argument_group("live view")
    page.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine alone)")
    page.add_argument("--port", type=int, default=8080, help="port to serve at; 0 for any free one (default: %(default)s)")
    page.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    video = parser.add_argument_group("video")
    video.add_argument("--record", type=Path, metavar="FILE", help="write a video (.mp4 or .gif) instead of a live view")
    video.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of the video (default: %(default)s)")
    video.add_argument("--width", type=int, default=640, help="of the whole video, pixels (default: %(default)s)")
    video.add_argument("--height", type=int, default=480, help="of the whole video, pixels (default: %(default)s)")
    video.add_argument("--fps", type=float, help="pictures per second (default: 50, in a gif 25)")
    video.add_argument("--camera", metavar="NAME", help="a camera of the model, or free (default: the model's first)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    for name, valid in (
        ("environments", args.environments >= 1),
        ("speed", 0 < args.speed < math.inf),
        ("seconds", 0 < args.seconds < math.inf),
        ("port", 0 <= args.port <= 65535),
        ("fps", args.fps is None or 0 < args.fps <= 1000),
        ("width", args.width >= 2),
        ("height", args.height >= 2),
    ):
        if not valid:
            parser.error(f"--{name} is out of its range, got {getattr(args, name)}")
    try:
        return _record(args) if args.record else _serve(args)
    except (DpgError, OSError, ValueError) as error:
        print(f"view: {error}", file=sys.stderr)
        return 1


def _make_rollout(args: argparse.Namespace) -> Rollout:
    os.environ.setdefault("MUJOCO_GL", "disable")  # or dm_control looks for a display
    import sim
    from sim.rollout import Rollout

    actor = PolicyActor(args.policy, args.environments) if args.policy else None
    contract = actor.contract if actor else None
    task = args.task or (contract.task if contract else DEFAULT_TASK)
    environment = sim.make(
        task,
        num_envs=args.environments,
        seed=args.seed,
        action_repeat=args.action_repeat or (contract.action_repeat if contract else 1),
        randomization=args.randomization,
        disturbance=args.disturbance,
    )
    if not isinstance(environment, sim.BatchEnvironment):
        environment.close()
        raise ConfigError(
            f"task {task} runs dm_control's own code in other processes and cannot be shown; docs/tasks.md names those that can"
        )
    if actor and contract:
        expected = dataclasses.replace(environment.contract(contract.history), latency_budget_s=contract.latency_budget_s)
        expected.require_equal(contract, ours=f"task {environment.task.name}", theirs=str(args.policy))
        return Rollout(environment, actor)
    kind = ZeroActor if args.zero else RandomActor
    return Rollout(environment, kind(environment.num_envs, environment.act_dim, args.seed))


def _serve(args: argparse.Namespace) -> int:
    try:
        from sim.viewer import Viewer
    except ImportError as error:
        if error.name not in ("viser", "trimesh"):
            raise
        print(f"view: the live view needs the extra 'view': pip install 'dpg-robot[view]' ({error})", file=sys.stderr)
        return 1
    rollout = _make_rollout(args)
    viewer = Viewer(rollout, rollout.environment.task.name, args.host, args.port, args.speed)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: viewer.stop())
    print(f"view: {viewer.url} shows {rollout.environment.task.name}; Ctrl-C ends it", flush=True)
    if not args.no_browser:
        webbrowser.open(viewer.url)
    try:
        viewer.run()
    finally:
        viewer.close()
    return 0


def _record(args: argparse.Namespace) -> int:
    from sim.video import grid_shape, write_video

    fps = args.fps or (25.0 if args.record.suffix.lower() == ".gif" else 50.0)
    rollout = _make_rollout(args)
    rows, columns = grid_shape(args.environments)
    size = max(2, args.width // columns // 2 * 2), max(2, args.height // rows // 2 * 2)  # even, as H.264 wants them
    frames = _draw(rollout, size, args.camera, round(args.seconds * fps), args.speed / fps)
    count = write_video(args.record, frames, fps)
    mean = (
        ""
        if not rollout.finished
        else f", mean return of the last {len(rollout.last_returns)} {np.mean(rollout.last_returns):.1f}"
    )
    print(f"view: wrote {args.record}: {count} pictures, {count / fps:g} s; {rollout.finished} episodes finished{mean}")
    return 0


def _draw(
    rollout: Rollout, size: tuple[int, int], camera: str | None, count: int, time_step_s: float
) -> Iterator[NDArray[np.uint8]]:
    """Yield ``count`` pictures of all environments, one per ``time_step_s`` of simulated time."""
    from sim.render import FrameRenderer
    from sim.video import lay_out

    with FrameRenderer(rollout.environment, *size, camera) as renderer:
        for picture in tqdm(range(count), desc="drawing", disable=None):
            while rollout.time_s < picture * time_step_s:
                rollout.step()
            yield lay_out([renderer.frame(index) for index in range(rollout.environment.num_envs)])


if __name__ == "__main__":
    sys.exit(main())
