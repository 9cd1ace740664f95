"""Denoising diffusion: how much noise each timestep has, and how samplers step from noise to a sample."""
