"""`peftjax serve`: a language model and adapters for it behind OpenAI's protocol."""
