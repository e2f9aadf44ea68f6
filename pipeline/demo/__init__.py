"""A page to try a pair beside its teacher, served on this machine alone; only this folder imports Gradio."""
