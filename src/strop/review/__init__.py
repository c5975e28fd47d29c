"""A data set as a run would see it, before any run: counted, checked, and shown token by token."""
