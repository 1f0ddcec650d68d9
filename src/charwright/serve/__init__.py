"""The HTTP service: runs behind the OpenAI completions API."""
