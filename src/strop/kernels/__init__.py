"""The operations of the training step, one a file: the maths, its gradient, and nothing of the model.

Each file holds the definition of its operation in plain torch, on any device: the reference that every faster
implementation is tested against. This room imports nothing of Strop but `strop.errors`.

Shapes carry their axes as suffixes: T tokens of a pack, N learned tokens, D hidden, F intermediate, V vocabulary,
H heads, K key-value heads, E head size, R adapter rank, O outputs and I inputs of a projection.
"""
