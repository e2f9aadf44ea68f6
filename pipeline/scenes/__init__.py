"""The embedded world: captions of simple scenes, a renderer that draws them, a checker that reads an image back."""
