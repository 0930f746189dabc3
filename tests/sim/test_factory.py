"""One call makes native tasks, other tasks of dm_control's suite, and one's own, and says what it does not know."""

import numpy as np
import pytest

import sim
from dpg_robot.errors import ConfigError, UnknownNameError
from sim.randomization import Randomization
from sim.tasks import make_task


def test_a_task_of_the_suite_that_is_not_native_steps_in_worker_processes():
    with sim.make("fish-swim", num_envs=2, num_threads=1, disturbance="easy") as env:
        assert isinstance(env, sim.DmControlEnvironment)
        assert env.reset().shape == (2, env.obs_dim)
        assert env.step(np.zeros((2, env.act_dim))).obs.shape == (2, env.obs_dim)


def test_an_environment_of_ones_own_is_told_from_a_task_by_the_seed_that_it_takes(tmp_path):
    (tmp_path / "worlds.py").write_text(
        "from dm_control import suite\n"
        "from sim.tasks.cartpole import swingup\n"
        "def make_world(seed):\n"
        "    return suite.load('cartpole', 'two_poles', task_kwargs={'random': seed})\n"
    )
    with sim.make(f"{tmp_path}/worlds.py:make_world", num_threads=1) as env:
        assert isinstance(env, sim.DmControlEnvironment)
        assert env.obs_dim == 8
    assert isinstance(sim.make(f"{tmp_path}/worlds.py:swingup"), sim.BatchEnvironment)
    assert isinstance(sim.make(make_task("walker-walk")), sim.BatchEnvironment)


@pytest.mark.parametrize(("name", "meant"), [("fish-swin", "fish-swim"), ("walker-wlak", "walker-walk")])
def test_unknown_tasks_are_refused_with_a_suggestion_from_all_there_are(name, meant):
    with pytest.raises(UnknownNameError, match=f"unknown task '{name}'.* Did you mean '{meant}'"):
        sim.make(name)


@pytest.mark.parametrize("randomization", ["default", Randomization(mass=(0.9, 1.1))])
def test_dynamics_of_what_is_not_native_cannot_be_randomized(randomization):
    with pytest.raises(ConfigError, match="'fish-swim' does not step natively, so its dynamics cannot be randomized"):
        sim.make("fish-swim", randomization=randomization)
