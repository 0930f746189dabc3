"""The operator's page: what robots, learner, gate and model store do now, and the way back."""
