"""The run folder: its layout, checkpoints, events, manifest and report."""
