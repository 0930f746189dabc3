"""The GPU host: takes in logged transitions, fine-tunes, gates and publishes policies."""
