"""The general path: what `transformers` can load and no table of ours describes, tuned by our linear, loss and step.

    config.json ─▶ their config ─▶ skeleton (no weights) ─▶ GeneralSpec ─▶ plan
    files ─▶ GeneralTensors ─▶ NF4, one tensor at a time ─▶ the skeleton, its linears replaced ─▶ GeneralDecoder

Slower than `strop.model.decoder`, and in the same places: what trains, asks and measures takes either. transformers is
an extra (``pip install 'strop[general]'``) and is imported when such a model is met, never before. Code out of a
model's repository is not run here either.
"""
