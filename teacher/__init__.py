"""How the shipped teacher is made: autoencoder, rendered scenes, transformer, score. Run by its own dvc.yaml."""
