"""Making training data: prompts and pictures from a teacher (paper section 5.2, stage 2), and captions (stage 1)."""
