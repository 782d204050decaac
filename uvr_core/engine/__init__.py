"""Decides: locates concepts, asks policies, writes what they edit, and says which images may be handed out."""
