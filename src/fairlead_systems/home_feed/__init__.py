"""The home feed of a short-video service, slow in one arm and protected in the other."""
