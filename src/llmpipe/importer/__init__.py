"""`llmpipe import`: a configuration file of another proxy becomes one for `llmpipe serve --config`.

`document` reads what is not trusted, `litellm`, `llama_swap` and `nginx` understand it, and `draft` is the file that is made of it.
"""
