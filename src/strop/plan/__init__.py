"""The plan: how a recipe is computed on this machine. A plan changes memory and time, never the result."""
