"""Training: the loop, the step, the optimiser, the course of the learning rate, and what stops a run."""
