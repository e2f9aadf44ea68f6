"""How the shipped teacher is made: render, autoencoder, text-conditioned transformer, score, save. Run by its own dvc.yaml."""
