"""A worked example, docs/your_style.md: a style LoRA for the shipped teacher, from its training to a fast pair."""
