"""`llmpipe import`: a configuration file of another proxy becomes one for `llmpipe serve --config`.

`document` reads what is not trusted, `litellm`, `llama_swap` and `nginx` understand it, and `draft` is the file that is made of it.
"""

KINDS = ("litellm", "llama-swap", "nginx")
"""The proxies whose files are understood. Named here, where nothing is imported: the command line names them at every start."""
