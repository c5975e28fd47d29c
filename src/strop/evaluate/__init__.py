"""Evaluation: held-out loss, sample answers, whether an answer is right, and base against tuned."""
