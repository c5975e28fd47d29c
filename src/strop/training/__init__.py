"""Training: the loop, the step, the optimiser, the course of the learning rate, and what stops a run.

The room is not called `train`: that name is the function `strop.train`, and Python would bind it to the room.
"""
