"""Recordings of a teacher: trajectories from noise to image, and anchors for other prompts."""
