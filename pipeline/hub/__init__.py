"""A bundle as a repository of the Hugging Face hub: its folder, its model card, and the upload."""
