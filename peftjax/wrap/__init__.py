"""Any JAX program as a model: where its parameters are used is found by tracing it, and methods act there."""
