"""The bundle: a pair of adapters with its manifest, how it is written, imported, used and exported to other formats."""
