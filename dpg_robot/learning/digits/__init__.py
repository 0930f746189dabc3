"""Walking images of digits along the gradient of an outcome: the denoiser's difference beside a classifier's derivative."""
