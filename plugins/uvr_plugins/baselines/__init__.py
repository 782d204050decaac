"""Other ways to keep a concept out, behind one interface, for comparison. See uvr_core.protocols.Baseline."""
