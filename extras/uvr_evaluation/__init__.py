"""`uvr eval`: the same tasks under several policies, baselines and controls, judged, with intervals."""
