"""The server behind `xgv serve`: chat, embeddings, uploads and search over HTTP, shaped as OpenAI's interface."""
