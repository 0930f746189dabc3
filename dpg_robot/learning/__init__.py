"""Policy, denoiser, baseline, the denoised action gradient, and the learner (torch)."""
