"""Cost of a training, latency of models, and tables of methods x seeds from finished runs."""
