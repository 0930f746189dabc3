"""What runs on the robot computer: policy session, safety, clock and control loop (no torch, no mujoco)."""
