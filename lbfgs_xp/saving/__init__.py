"""Saving what a run knows, so that another process can continue it.

A state becomes plain data and arrays (`encoding`), which are written to one file (`file`); a
`Checkpoint` decides when. Nothing here is a pickle: reading a file runs no code from it.
"""
