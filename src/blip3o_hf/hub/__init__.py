"""Folders to the Hugging Face Hub, and the cards that go with them: written by whoever knows, and checked."""
