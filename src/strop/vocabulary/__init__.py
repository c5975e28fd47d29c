"""Vocabularies of other formats as the content of a ``tokenizer.json``, which the library `tokenizers` runs."""
