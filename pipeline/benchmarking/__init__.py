"""The official benchmarks of a pair: prompts, images, scores and one table."""
