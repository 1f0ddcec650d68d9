"""What the project's web pages share: their look, texts coloured by surprise, and filling in a template."""
