"""Does UVR fit a model, and what may be switched on beside it: examine and draft, the compatibility matrix."""
