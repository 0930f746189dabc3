"""Times EnvPool for ``sim.benchmark``; a program of its own, with nothing but EnvPool and numpy, to run under any Python.

Usage: ``benchmark_envpool.py TASK ENVIRONMENTS THREADS``. Prints ``ready`` or why it cannot, then, for each line with a number of
seconds that it reads, the control steps per second that it measured.
"""

import sys
import time

_ACTION_SETS = 16


def main():  # type: ignore[no-untyped-def] # EnvPool may not be there to take types from
    """Serve measurements until the input ends."""
    task, environments, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        import envpool  # type: ignore[import-not-found,unused-ignore]
        import numpy as np
    except ImportError:
        print("not installed", flush=True)
        return
    name = "".join(part.capitalize() for part in task.replace("-", "_").split("_")) + "-v1"
    if name not in envpool.list_all_envs():
        print("no such task", flush=True)
        return
    pool = envpool.make(name, env_type="gymnasium", num_envs=environments, batch_size=environments, num_threads=threads, seed=0)
    space = pool.action_space
    actions = np.random.default_rng(0).uniform(space.low, space.high, (_ACTION_SETS, environments, *space.shape))
    actions = actions.astype(space.dtype)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, steps, start = float(line), 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            steps += run_episode(pool, actions)  # type: ignore[no-untyped-call]
        print(environments * steps / elapsed, flush=True)


def run_episode(pool, actions):  # type: ignore[no-untyped-def] # as above
    """Run one episode in all environments from their reset on; returns its steps."""
    pool.reset()
    steps, ended = 0, False
    while not ended:
        _, _, terminated, truncated, _ = pool.step(actions[steps % _ACTION_SETS])
        ended = bool((terminated | truncated).any())
        steps += 1
    return steps


if __name__ == "__main__":
    main()  # type: ignore[no-untyped-call]
