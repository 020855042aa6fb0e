"""Reading a trained model: likelihoods, text generation, releases, search and serving."""
