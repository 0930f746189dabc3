"""Trains an algorithm of d3rlpy for ``sim.benchmarks.offline_peers``; a program of its own, to run under a Python that has it.

Usage: ``benchmark_d3rlpy.py ALGORITHM DATA.npz SEED HIDDEN_SIZES DISCOUNT BATCH_SIZE``, where the data are what
``offline_peers.export_transitions`` wrote. It prints one line of JSON when it is ready. Then it reads a line of JSON for each
command: ``{"train": STEPS}``, always the same number, is answered by a line when so many updates are done; ``{"act": N}`` is
followed by N observations (float32, as bytes) and answered by a line with the number of bytes and then N actions (float32, as
bytes).
"""

import json
import os
import sys


def main():  # type: ignore[no-untyped-def] # d3rlpy is not there to take types from
    """Serve until the input ends."""
    algorithm, file, seed, hidden_sizes, discount, batch_size = sys.argv[1:7]
    source = sys.stdin.buffer
    # the answers have the output for themselves; what libraries print goes to stderr
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        import d3rlpy  # type: ignore[import-not-found,unused-ignore]
        import numpy as np
        import torch
    except ImportError as error:
        say(answers, {"error": f"not installed: {error}"})  # type: ignore[no-untyped-call]
        return
    torch.set_num_threads(1)
    d3rlpy.seed(int(seed))
    with np.load(file, allow_pickle=False) as data:
        size = data["observations"].shape[1]
        dataset = d3rlpy.dataset.MDPDataset(**{name: data[name] for name in data.files})
    learner = make(d3rlpy, algorithm, json.loads(hidden_sizes), float(discount), int(batch_size))  # type: ignore[no-untyped-call]
    epochs = None
    say(answers, {"ready": True, "d3rlpy": d3rlpy.__version__, "torch": torch.__version__})  # type: ignore[no-untyped-call]
    for line in source:
        command = json.loads(line)
        if "train" in command:
            epochs = epochs or learner.fitter(
                dataset,
                n_steps=10**9,
                n_steps_per_epoch=command["train"],
                logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
                show_progress=False,
                save_interval=10**9,
            )
            next(epochs)
            say(answers, {"trained": command["train"]})  # type: ignore[no-untyped-call]
        else:
            content = source.read(command["act"] * size * 4)
            observations = np.frombuffer(content, dtype=np.float32).reshape(command["act"], size)
            actions = np.ascontiguousarray(learner.predict(observations), dtype=np.float32).tobytes()
            say(answers, {"bytes": len(actions)}, actions)  # type: ignore[no-untyped-call]


def make(d3rlpy, algorithm, hidden_sizes, discount, batch_size):  # type: ignore[no-untyped-def] # as above
    """Return an algorithm as d3rlpy's own reproductions of the papers set it up."""
    encoder = d3rlpy.models.encoders.VectorEncoderFactory(hidden_units=hidden_sizes)
    scaler = d3rlpy.preprocessing.StandardObservationScaler()
    common = {
        "gamma": discount,
        "batch_size": batch_size,
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
        "observation_scaler": scaler,
    }
    if algorithm == "TD3PlusBC":
        config = d3rlpy.algos.TD3PlusBCConfig(**common)
    elif algorithm == "IQL":
        rewards = d3rlpy.preprocessing.ReturnBasedRewardScaler(multiplier=1000.0)
        config = d3rlpy.algos.IQLConfig(**common, value_encoder_factory=encoder, reward_scaler=rewards)
    else:
        raise SystemExit(f"unknown algorithm {algorithm}")
    return config.create(device="cpu:0")


def say(answers, message, content=b""):  # type: ignore[no-untyped-def] # as above
    """Answer with a line of JSON and perhaps bytes."""
    answers.write(json.dumps(message).encode() + b"\n" + content)
    answers.flush()


if __name__ == "__main__":
    main()  # type: ignore[no-untyped-call]
