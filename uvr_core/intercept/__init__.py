"""Sees and counts: makes joint attention visible and editable on stock models, and vouches for every call of it.

Nothing here knows of a concept, a located mask, a policy or an image; see intervention.py for the door to what does.
"""
