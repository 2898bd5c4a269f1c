"""The app: a page in the browser to talk to a model, and to draw, edit and reconstruct pictures with it."""
