"""Inputs: how one example becomes arrays, one file a kind."""
