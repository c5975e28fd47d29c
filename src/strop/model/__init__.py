"""Models: a spec read from config.json, a decoder built from it, NF4 weights, adapters, generation."""
