"""Devices: the mesh, and how leaves and batches lie on it."""
