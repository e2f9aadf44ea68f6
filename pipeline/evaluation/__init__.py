"""Evaluation: what is compared (arms), how it is measured (metrics, retention, latency), how it is shown (report)."""
