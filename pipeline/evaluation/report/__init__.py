"""The page that shows what was measured, for people and for the registry."""
