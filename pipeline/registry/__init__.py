"""The MLflow registry: what is published, promoted and pulled, and where it lies."""
