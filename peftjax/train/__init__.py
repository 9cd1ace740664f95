"""Training: state, step, checkpoints, evaluation and the loop that ties them together."""
