"""Making a concept bank: collect what a concept looks like inside a model, then choose how to detect it."""
