"""What is recorded of a teacher: how it moves from noise to image, and what it does with other prompts."""
