"""The zoo's second edition: objects anywhere and of any size, captions in free English that mostly say no place."""
